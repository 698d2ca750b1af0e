"""Decomposition of a base: the singular value decomposition of every MLP matrix, from the cache that Adaptrix keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from torch import nn

from adaptrix import Problem, RefusedError, Spectral
from adaptrix.extend import Counted, Identity, Pipeline, SvdCache, refuse, spectral_delta, uncounted
from adaptrix_transformer2.matrices import Matrices, Matrix, of_base, of_model


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A base's name and family, and by module path the delta of z = 1 with U and V: all that its experts share."""

    base: str | None
    identity: Identity
    spectra: Mapping[str, Spectral]


def decomposed(
    model: nn.Module,
    *,
    layers: Collection[int] | None = None,
    cache: SvdCache | None = None,
    display: Counted = uncounted,
) -> Decomposition:
    """The MLP matrices of a model in memory, in some ``layers`` or in all, decomposed.

    Each is decomposed once: the cache keeps it, and an interrupted call goes on where it was. Raises
    :class:`AdaptrixError` with every problem.
    """
    return _decomposed(of_model(model, layers), cache, display)


def decomposed_base(
    uri: str,
    pipeline: Pipeline,
    *,
    layers: Collection[int] | None = None,
    cache: SvdCache | None = None,
    display: Counted = uncounted,
) -> Decomposition:
    """The same of a base's files; the model itself is not loaded."""
    return _decomposed(of_base(uri, pipeline, layers), cache, display)


def _decomposed(matrices: Matrices, cache: SvdCache | None, display: Counted) -> Decomposition:
    cache = cache or SvdCache()
    spectra, problems = dict[str, Spectral](), list[Problem]()
    with display("decomposing", len(matrices.matrices)) as advance:
        for matrix in matrices.matrices:
            try:
                spectra[matrix.path] = _spectral(matrix, cache)
            except RefusedError as error:
                problems += error.problems
            advance(1)
    if problems:
        raise RefusedError(problems)
    return Decomposition(matrices.base, matrices.identity, MappingProxyType(spectra))


def _spectral(matrix: Matrix, cache: SvdCache) -> Spectral:
    weight = matrix.stored()
    ones = np.ones(min(weight.shape, default=0), dtype=np.float32)
    found = spectral_delta(ones, weight, cache, turned=matrix.transposed, where=matrix.path)
    if not found.S.float32().any():
        raise refuse("svd-failed", matrix.path, "a weight of zeros, which no z changes", "a trained weight")
    return found
