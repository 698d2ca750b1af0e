"""The best factors of a rank for a dense matrix: by LAPACK, or by a randomised SVD where the rank is small."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptrix.algebra.factors import Loss, Pair
from adaptrix.delta import Matrix

Single = NDArray[np.float32]
Solver = Literal["auto", "exact", "randomised"]
SOLVERS: tuple[Solver, ...] = ("auto", "exact", "randomised")

_OVERSAMPLED = 10  # Halko et al. call for 5 to 10
_ROUNDS = 12
_SMALL = 20  # a subspace this many times smaller than the matrix is found faster at random than by LAPACK
_GAIN = 1e-5  # of ‖X‖²: what a further round has to bring
_BLOCK = 1024  # columns of which there is an fp64 copy
_ROWS = 64


def best_pair(X: Single, rank: int, solver: Solver = "auto", seed: int = 0) -> Pair:
    """Factors (A, B) of at most ``rank`` with B·A near X ``[out, in]``, the singular values shared evenly by both.

    ``exact``: the eigenvectors of the smaller of X·Xᵀ and Xᵀ·X, both accumulated in fp64, so that directions count
    down to 1e-8 of the largest singular value, which is where fp32 ends; it takes half the time of an SVD.
    ``randomised``: see :func:`_sketched`. ``auto`` uses that where the rank is small beside both sides. ``seed``: of
    the random subspace.
    """
    side = min(X.shape)
    if X.shape[0] > X.shape[1]:
        A, B = best_pair(X.T, rank, solver, seed)
        return B.T, A.T
    if solver == "randomised" or (solver == "auto" and _SMALL * (rank + _OVERSAMPLED) <= side):
        return _sketched(X, min(rank, side), seed)
    return _balanced(*_projected(X, min(rank, side)))


def residual(X: Single, A: Single, B: Single) -> Loss:
    """‖X‖² and ‖X − B·A‖², measured a few rows at a time: fp32 in the cache, fp64 from block to block."""
    wanted = lost = 0.0
    for start in range(0, len(X), _ROWS):
        rows = np.ascontiguousarray(X[start : start + _ROWS])
        wanted += float(np.vdot(rows, rows))
        gap = rows - B[start : start + _ROWS] @ A
        lost += float(np.vdot(gap, gap))
    return Loss(wanted, lost)


def _projected(X: Single, rank: int) -> tuple[Matrix, Matrix]:
    """The leading left singular vectors U of a wide X, and Uᵀ·X."""
    gram = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], _BLOCK):
        columns = X[:, start : start + _BLOCK].astype(np.float64)
        gram += columns @ columns.T
    U = np.linalg.eigh(gram)[1][:, : -rank - 1 : -1]
    blocks = [U.T @ X[:, start : start + _BLOCK].astype(np.float64) for start in range(0, X.shape[1], _BLOCK)]
    return U, np.concatenate(blocks, axis=1)


def _balanced(U: Matrix, C: Matrix) -> Pair:
    """U·C, whose columns of U are of length 1, with the lengths of C's rows shared by both."""
    root = np.sqrt(np.linalg.norm(C, axis=1))
    safe = np.where(root > 0, root, 1.0)
    return C / safe[:, None], U * root


def _sketched(X: Single, rank: int, seed: int) -> Pair:
    """Randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), in fp32.

    A power of X is applied to a random subspace a little larger than ``rank``, made orthonormal at every step, until
    a further round would bring next to nothing of ‖X‖².
    """
    width = min(rank + _OVERSAMPLED, *X.shape)
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(X @ rng.standard_normal((X.shape[1], width), dtype=np.float32))[0]
    total, before = float(np.vdot(X, X)), 0.0
    for _ in range(_ROUNDS):
        Z = np.linalg.qr(X.T @ Q)[0]
        Q, R = np.linalg.qr(X @ Z)
        U, s, Vt = np.linalg.svd(R.astype(np.float64))
        kept = float(np.sum(s[:rank] ** 2))
        if kept - before <= _GAIN * total:
            break
        before = kept
    root = np.sqrt(s[:rank])
    return (root[:, None] * Vt[:rank]) @ Z.T.astype(np.float64), Q.astype(np.float64) @ (U[:, :rank] * root)
