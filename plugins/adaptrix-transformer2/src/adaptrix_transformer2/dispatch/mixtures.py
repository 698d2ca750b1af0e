"""Mixtures of experts: z is the weighted mean of theirs, with one set of weights or one for each matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adaptrix import Adapter, Problem, RefusedError, Session, Spectral, UsageError, attach
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.dispatch.searching import Weights, normalised
from adaptrix_transformer2.experts import expert, untrained, z_of_expert

Experts = Mapping[str, Adapter]
_NAME = "mixture"
_EQUAL = 1e-5  # of the largest: how far singular values that are the same may lie apart


def mixture(parts: Decomposition, experts: Experts, weights: Weights, name: str = _NAME) -> Adapter:
    """The expert of z = Σ α·z over ``experts``, the weights ``[experts, groups]`` made to sum to 1.

    One group is for all matrices, else there is one for each, in the order of ``parts``. A matrix that an expert
    leaves alone has z = 1 there. Raises :class:`AdaptrixError` for weights and experts that do not fit.
    """
    alpha = _fitting(parts, experts, weights)
    table = _table(parts, experts)
    z = {path: alpha[:, at] @ rows for at, (path, rows) in enumerate(table.items())}
    shares = {one: row.tolist() for one, row in zip(experts, normalised(weights), strict=True)}
    return expert(parts, name, z, {"method": "mixture", "weights": shares})


class Mixing:
    """A mixture that acts on a model, its weights changed by writing z alone."""

    def __init__(self, session: Session, parts: Decomposition, experts: Experts) -> None:
        self._session, self._parts, self._experts = session, parts, experts
        named = session.named_parameters(_NAME)
        self._z = [named[f"{path}.spectral_z"] for path in parts.spectra]
        rows = _table(parts, experts).values()
        self._rows = [torch.from_numpy(one).to(z) for one, z in zip(rows, self._z, strict=True)]

    @contextmanager
    def acting(self, weights: Weights) -> Iterator[None]:
        """The mixture of some weights acts."""
        alpha = torch.from_numpy(_fitting(self._parts, self._experts, weights))
        with torch.no_grad():
            for at, (z, rows) in enumerate(zip(self._z, self._rows, strict=True)):
                z.copy_(alpha[:, at].to(rows) @ rows)
        with self._session.use(_NAME):
            yield


@contextmanager
def mixing(model: nn.Module, parts: Decomposition, experts: Experts) -> Iterator[Mixing]:
    """Mixtures of experts on a model, which is afterwards as it was."""
    with attach(model, {_NAME: untrained(parts, _NAME)}) as session:
        yield Mixing(session, parts, experts)


def _fitting(parts: Decomposition, experts: Experts, weights: Weights) -> Weights:
    """Weights that sum to 1, ``[experts, matrices]``. Raises :class:`UsageError` for others."""
    count, matrices = len(experts), len(parts.spectra)
    if not count or weights.shape not in ((count, 1), (count, matrices)):
        expected = f"[{count}, 1] or [{count}, {matrices}], one row an expert, and at least one"
        raise UsageError(Problem("option", "mixture", f"weights of shape {list(weights.shape)}", expected))
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UsageError(Problem("option", "mixture", "some are negative or not finite", "numbers from 0 to 1"))
    return np.broadcast_to(normalised(weights), (count, matrices)).copy()


def _table(parts: Decomposition, experts: Experts) -> dict[str, NDArray[np.float64]]:
    """By matrix the z of each expert, ``[experts, k]``. Raises :class:`RefusedError` for those of another base."""
    known = {name: z_of_expert(adapter) for name, adapter in experts.items()}
    ones = {path: np.ones(delta.rank) for path, delta in parts.spectra.items()}
    problems = list[Problem]()
    for name, z in known.items():
        problems += [
            Problem("tensor-unexpected", f"{name} {path}", "no matrix of this base") for path in z.keys() - ones.keys()
        ]
        problems += _other_base(parts, name, experts[name])
    if problems:
        raise RefusedError(problems)
    return {path: np.stack([z.get(path, one) for z in known.values()]) for path, one in ones.items()}


def _other_base(parts: Decomposition, name: str, adapter: Adapter) -> Iterator[Problem]:
    for target, delta in adapter.deltas.items():
        own = parts.spectra.get(str(target))
        if own is not None and isinstance(delta, Spectral) and not _same_weight(own, delta):
            found = f"a z of the weight {delta.basis.weight[:12]}… in {delta.basis.dtype}"
            expected = f"{own.basis.weight[:12]}… in {own.basis.dtype}, the base's"
            yield Problem("base-mismatch", f"{name} {target}", found, expected)


def _same_weight(own: Spectral, other: Spectral) -> bool:
    """True for two deltas of one weight. Where it was read in two dtypes, its singular values tell."""
    if own.basis.dtype == other.basis.dtype:
        return own.basis.weight == other.basis.weight
    ours, theirs = own.S.float64(), other.S.float64()
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= _EQUAL * ours.max())
