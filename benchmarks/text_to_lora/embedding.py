"""Descriptions as vectors: words, and words beside one another, each counted in a place that its hash gives.

The plugin's own n-grams look inside words and forget their order, and "multiply by 3 and add 2" has the words of
"multiply by 2 and add 3". Nothing here is trained, and nothing knows what a word means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

import torch
from adaptrix_text_to_lora.encoders import scaled
from torch import Tensor

from benchmarks.world.descriptions import describe
from benchmarks.world.operations import MODULUS, Task

WIDTH = 1024
_NUMBERS = {*map(str, range(MODULUS)), "one", "two", "three", "first", "second", "third", "fourth"}


class WordsInOrder:
    """An encoder: words, pairs, pairs with a word between, triples, and which number comes as the how-manieth."""

    name, width = "words-in-order", WIDTH

    def __call__(self, text: str, /) -> Tensor:
        counts = torch.zeros(WIDTH)
        for feature in _features(["<", *text.split(), ">"]):
            number = int.from_bytes(blake2b(feature.encode(), digest_size=8).digest(), "big")
            counts[(number >> 1) % WIDTH] += 1.0 if number & 1 else -1.0
        return counts


def _features(words: Sequence[str]) -> Iterator[str]:
    yield from words
    yield from map(" ".join, pairwise(words))
    yield from map(" * ".join, zip(words, words[2:], strict=False))
    yield from map(" ".join, zip(words, words[1:], words[2:], strict=False))
    numbers = [word for word in words if word in _NUMBERS]
    yield from (f"number {place} is {word}" for place, word in enumerate(numbers) for _ in range(2))


def embedded(tasks: Sequence[Task], ways: Sequence[int]) -> Tensor:
    """``[tasks, ways, E]``, as the hypernetwork reads them."""
    encoder = WordsInOrder()
    return torch.stack([torch.stack([scaled(encoder(describe(task, way)), encoder) for way in ways]) for task in tasks])
