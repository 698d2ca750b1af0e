"""Singular values of a change to a weight, from its two thin factors, and what is lost without the smallest of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truncation:
    """The error of a smaller rank: ``absolute`` is ‖ΔW − ΔW_k‖_F, ``size`` is ‖ΔW‖_F."""

    absolute: float
    size: float

    @property
    def relative(self) -> float:
        """The one over the other; 0 where both are zero."""
        return self.absolute / self.size if self.size else self.absolute

    @classmethod
    def of(cls, values: NDArray[np.float64], rank: int | None) -> Truncation:
        """√Σσ² over all but the ``rank`` largest of these singular values (Eckart–Young); nothing where it is None."""
        sizes = np.sort(values)[::-1]
        largest = float(sizes[0]) or 1.0
        with np.errstate(invalid="ignore"):  # Inf
            squares = (sizes / largest) ** 2  # of the values themselves they may overflow
        lost = squares[len(squares) if rank is None else rank :].sum()
        return cls(largest * sqrt(lost), largest * sqrt(squares.sum()))


def smallest_rank(values: NDArray[np.float64], allowed: float) -> int:
    """The smallest rank that leaves out no more than ``allowed`` of √Σσ², a share."""
    sizes = np.sort(values)
    if not sizes[-1]:
        return 1
    squares = (sizes / sizes[-1]) ** 2
    lost = np.cumsum(squares)  # of the smallest, the next to smallest …
    return len(squares) - int(np.searchsorted(lost, allowed**2 * lost[-1], side="right"))


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The singular value decomposition of B·A: ``values`` from the largest on, at most as many as its rank.

    The vectors are kept as the Q of each factor and the small matrix that turns it, so that only those asked
    for are ever made.
    """

    values: NDArray[np.float64]
    left: tuple[Matrix, Matrix]
    right: tuple[Matrix, Matrix]

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """(A, B) of the best approximation of at most ``rank`` in the Frobenius norm (Eckart–Young).

        The singular values are shared evenly between the two, so that neither is badly scaled for a small dtype.
        """
        keep = min(rank, len(self.values))
        root = np.sqrt(self.values[:keep])
        (Qb, U), (Qa, Vt) = self.left, self.right
        return (root[:, None] * Vt[:keep]) @ Qa.T, Qb @ (U[:, :keep] * root)


def spectrum(A: Matrix, B: Matrix) -> Spectrum:
    """The singular values and vectors of B·A, from the QR of B and of Aᵀ and the SVD of the small core Rb·Raᵀ."""
    Qb, Rb = np.linalg.qr(B)
    Qa, Ra = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(Rb @ Ra.T)
    return Spectrum(s, (Qb, U), (Qa, Vt))


def truncate(A: Matrix, B: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The best factors of at most ``rank`` for B·A in the Frobenius norm."""
    return spectrum(A, B).factors(rank)


def norm(A: Matrix, B: Matrix) -> float:
    """‖B·A‖_F through the QR of both factors: no cancellation, unlike the Gram matrices."""
    return float(np.linalg.norm(np.linalg.qr(B)[1] @ np.linalg.qr(A.T)[1].T))
