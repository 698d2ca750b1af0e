"""Methods that make one pair of factors of several: each takes terms c·B·A and returns (scale, A, B).

``linear``, ``ties``, ``dare`` and ``dare-ties`` work on A and on B apart, as PEFT's ``add_weighted_adapter`` does
(there ``linear``, ``ties``, ``dare_linear`` and ``dare_ties``): the product of two sums has cross terms, so that none
of them is the weighted sum of ΔW, whatever its density. TIES: Yadav et al. 2023, arXiv 2306.01708; DARE: Yu et al.
2023, arXiv 2311.03099.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import copysign, sqrt

import numpy as np
from numpy.random import Generator

from adaptrix.algebra.factors import Loss
from adaptrix.delta import Matrix, spectrum


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """c·B·A, where c is an adapter's weight times its scale."""

    c: float
    A: Matrix
    B: Matrix

    @property
    def rank(self) -> int:
        return len(self.A)


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """The result scale · B·A. ``loss``: where the method knows it; ``exact``: it has no loss but rounding;
    ``untouched``: every number is one of a term's, but for its sign."""

    scale: float
    A: Matrix
    B: Matrix
    loss: Loss | None = None
    exact: bool = False
    untouched: bool = False


def concatenated(terms: Sequence[Term]) -> Merged:
    """The sum itself: ranks side by side, under the largest |c|.

    A smaller |c| is split evenly between a term's two factors, so that neither becomes tiny; terms of one |c| are
    left as they are, but for a sign.
    """
    scale = max(abs(term.c) for term in terms) or 1.0
    roots = [sqrt(abs(term.c) / scale) for term in terms]
    A = np.concatenate([root * term.A for root, term in zip(roots, terms, strict=True)])
    B = np.concatenate([copysign(root, term.c) * term.B for root, term in zip(roots, terms, strict=True)], axis=1)
    untouched = all(root == 1.0 for root in roots)
    return Merged(scale, A, B, exact=True, untouched=untouched)


def truncated(terms: Sequence[Term], rank: int | None = None) -> Merged:
    """The best approximation of the sum of a rank, the largest of the terms' own by default, and its exact loss."""
    found = spectrum(np.concatenate([term.A for term in terms]), np.concatenate([t.c * t.B for t in terms], axis=1))
    keep = rank or max(term.rank for term in terms)
    A, B = found.factors(keep)
    squares = found.values**2
    return Merged(1.0, A, B, Loss(float(squares.sum()), float(squares[keep:].sum())))


#: makes one matrix of all A, or of all B, and the numbers that each is multiplied by
Mix = Callable[[Sequence[Matrix], Sequence[float]], Matrix]


def mixed(terms: Sequence[Term], mix: Mix) -> Merged:
    """A of the terms' A and B of their B. Both are multiplied by √|c|, A by the sign of c as well."""
    roots = [sqrt(abs(term.c)) for term in terms]
    A = mix([term.A for term in terms], [copysign(root, term.c) for root, term in zip(roots, terms, strict=True)])
    return Merged(1.0, A, mix([term.B for term in terms], roots))


def weighted_sum(tensors: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    """Σ weight · tensor."""
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), np.zeros_like(tensors[0]))


def elected(tensors: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    """The mean of those that have the sign of their unweighted sum, number by number."""
    stacked = np.stack(tensors)
    majority = np.where(stacked.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(stacked) == majority
    chosen = weighted_sum(list(np.where(agree, stacked, 0.0)), weights)
    return np.asarray(chosen / np.maximum(agree.sum(axis=0), 1))


def trimmed(tensor: Matrix, density: float) -> Matrix:
    """The share ``density`` of the numbers that are largest in magnitude; the others are zero."""
    keep = int(density * tensor.size)
    kept = np.zeros(tensor.size)
    if keep:
        largest = np.argpartition(np.abs(tensor), tensor.size - keep, axis=None)[tensor.size - keep :]
        kept[largest] = tensor.ravel()[largest]
    return kept.reshape(tensor.shape)


def dropped(tensor: Matrix, density: float, rng: Generator) -> Matrix:
    """Each number with the probability ``density``, divided by it; zero otherwise."""
    return np.where(rng.random(tensor.shape) < density, tensor / density, 0.0)


def _ties(terms: Sequence[Term], density: float, _rng: Generator) -> Merged:
    return mixed(terms, lambda tensors, weights: elected([trimmed(t, density) for t in tensors], weights))


def _dare(terms: Sequence[Term], density: float, rng: Generator, mix: Mix) -> Merged:
    return mixed(terms, lambda tensors, weights: mix([dropped(t, density, rng) for t in tensors], weights))


#: methods that need a density: they drop numbers before they add
SPARSE: Mapping[str, Callable[[Sequence[Term], float, Generator], Merged]] = {
    "ties": _ties,
    "dare": partial(_dare, mix=weighted_sum),
    "dare-ties": partial(_dare, mix=elected),
}
METHODS = ("cat", "svd", "linear", *SPARSE)
#: methods that add factors number by number, and so ask for one rank
FACTORWISE = ("linear", *SPARSE)
