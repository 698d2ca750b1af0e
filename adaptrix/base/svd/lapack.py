"""The decomposition by LAPACK, and an estimate of how much of ΔW depends on its rounding."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from adaptrix.errors import refuse
from adaptrix.tensor import Tensor

Single = NDArray[np.float32]
Double = NDArray[np.float64]

#: LAPACK's gesdd in fp64 (numpy has no other), its vectors rounded to fp32
BACKEND = "lapack-f64"
#: how a decomposition was made -> the backward error of its arithmetic over the largest singular value
BACKENDS: Mapping[str, float] = MappingProxyType({BACKEND: 2.0**-50, "lapack-f32": 2.0**-21})


def decompose(weight: Single, where: str = "weight") -> tuple[Single, Double, Single]:
    """(U ``[out, k]``, S ``[k]`` from the largest on, Vᵀ ``[k, in]``) of a weight ``[out, in]``.

    The entry of the largest magnitude of each column of U is positive, so that the signs are reproducible. Raises
    :class:`RefusedError` for anything but a matrix of finite numbers; ``where`` names it in messages.
    """
    require_matrix(weight.shape, where)
    if not np.isfinite(weight).all():
        raise refuse("nonfinite", where, "NaN or Inf among its numbers", "finite numbers", "Fetch the base again.")
    try:
        U, S, Vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise refuse("svd-failed", where, f"LAPACK finds no decomposition ({error})", "a weight that has one") from None
    largest = U[np.abs(U).argmax(axis=0), np.arange(len(S))]
    signs = np.where(largest < 0, -1.0, 1.0)
    return (U * signs).astype(np.float32), S, (signs[:, None] * Vt).astype(np.float32)


def require_matrix(shape: tuple[int, ...], where: str) -> None:
    """Raises :class:`RefusedError` for a shape that is no matrix's, or an empty matrix's."""
    if len(shape) != 2 or 0 in shape:
        raise refuse("shape", where, f"shape {list(shape)}", "a matrix")


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes as they are."""
    digest = sha256()
    for piece in tensor.chunks():
        digest.update(piece)
    return digest.hexdigest()


def sensitivity(d: Double, S: Double, backend: str) -> float:
    """An estimate of ‖ΔW₁ − ΔW₂‖ / ‖ΔW‖ for ΔW = U·diag(d)·Vᵀ by two decompositions of one weight.

    Rounding turns the vectors of two neighbouring singular values into one another by about ε·s₁/(√k·gap) (first
    order; Stewart and Sun, *Matrix Perturbation Theory*, theorem V.2.8, with an error in no particular direction),
    and fully where the values are equal. That changes ΔW by the difference of their d. ``d``, ``S``: ``[k]``;
    ``backend``: a key of BACKENDS.
    """
    largest = np.abs(d).max(initial=0.0)
    if len(S) < 2 or not largest:
        return 0.0
    with np.errstate(invalid="ignore"):  # Inf
        d = d / largest  # the square of d itself may overflow or underflow
    gaps, moved = np.maximum(S[:-1] - S[1:], 0.0), np.diff(d)
    turns = np.ones_like(gaps)
    noise = BACKENDS[backend] * S[0] / np.sqrt(len(S))
    np.divide(noise, gaps, out=turns, where=gaps > noise)
    return float(np.sqrt(2 * np.sum((moved * turns) ** 2) / (d @ d)))
