"""Descriptions as vectors: words, and numbers with where they stand, weighed by what the training descriptions show.

The plugin's own n-grams look inside words and forget their order, and "multiply by 3 and add 2" has the words of
"multiply by 2 and add 3". Nothing here knows what a word means. What two ways to say the same task differ in is
shrunk (within-class covariance normalisation, Hatch et al., Interspeech 2006), so that tasks are what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.world.descriptions import describe
from benchmarks.world.operations import MODULUS, Task

_NUMBERS = {*map(str, range(MODULUS)), "one", "two", "three", "first", "second", "third", "fourth"}
_NUMBERS |= {"ascending", "descending"}
#: what is added to the within-class variance of every direction, as a share of their mean
_RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Embedding:
    """``weights``: of every feature its place and its rarity, log(texts ÷ texts with it); ``centre`` ``[E]``, the mean
    of the training descriptions; ``shrinking`` ``[E, E]``, (W + λ·1)^(−½) for their covariance W within a task."""

    weights: Mapping[str, tuple[int, float]]
    centre: Tensor
    shrinking: Tensor

    @classmethod
    def fitted(cls, tasks: Sequence[Task], ways: Sequence[int]) -> Embedding:
        """To the descriptions that are trained on; a feature that none of them has is not counted later."""
        texts = [describe(task, way) for task in tasks for way in ways]
        found = Counter(feature for text in texts for feature in set(_features(text)))
        weights = {name: (place, log(len(texts) / found[name])) for place, name in enumerate(sorted(found))}
        counted = torch.stack([_counted(text, weights) for text in texts]).unflatten(0, (len(tasks), len(ways)))
        within = (counted - counted.mean(1, keepdim=True)).flatten(0, 1)
        covariance = within.T @ within / len(texts)
        covariance += _RIDGE * covariance.diagonal().mean() * torch.eye(len(weights))
        values, vectors = torch.linalg.eigh(covariance)
        return cls(weights, counted.mean((0, 1)), vectors * values.rsqrt() @ vectors.T)

    def __call__(self, tasks: Sequence[Task], ways: Sequence[int]) -> Tensor:
        """``[tasks, ways, E]``, each of length √E, as the hypernetwork reads them."""
        counted = [[_counted(describe(task, way), self.weights) for way in ways] for task in tasks]
        apart = (torch.stack([torch.stack(each) for each in counted]) - self.centre) @ self.shrinking
        return functional.normalize(apart, dim=-1) * sqrt(len(self.weights))


def _counted(text: str, weights: Mapping[str, tuple[int, float]]) -> Tensor:
    counts = torch.zeros(len(weights))
    for feature in _features(text):
        if feature in weights:
            place, weight = weights[feature]
            counts[place] += weight
    return functional.normalize(counts, dim=0)


def _features(text: str) -> Iterator[str]:
    """Words; numbers with their neighbours; which number comes as the how-manieth, twice; numbers after one another."""
    words = text.split()
    yield from words
    places = [place for place, word in enumerate(words) if word in _NUMBERS]
    for order, place in enumerate(places):
        yield from [f"number {order} is {words[place]}"] * 2
        if place:
            yield " ".join(words[place - 1 : place + 1])
        if place + 1 < len(words):
            yield " ".join(words[place : place + 2])
    for one, other in pairwise(words[place] for place in places):
        yield from (f"numbers {one} {other}", f"numbers {other} {one}")
