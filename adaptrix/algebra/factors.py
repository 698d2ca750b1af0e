"""Deltas as pairs of fp64 factors, one pair an expert, and the loss of a computation with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from adaptrix.delta import LowRank, Matrix, norm
from adaptrix.tensor import Tensor

Pair = tuple[Matrix, Matrix]


@dataclass(frozen=True, slots=True)
class Loss:
    """‖X‖²_F of the exact result and ‖X − Y‖²_F of its error, in squares, so that losses add up."""

    wanted: float
    lost: float

    @property
    def error(self) -> float:
        """‖X − Y‖ / ‖X‖; 0 where both are zero."""
        return sqrt(self.lost / self.wanted) if self.wanted else sqrt(self.lost)

    @property
    def kept(self) -> float:
        """The share of ‖X‖² that is kept, where Y is a projection of X."""
        return 1.0 - self.lost / self.wanted if self.wanted else 1.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.wanted + other.wanted, self.lost + other.lost)


NOTHING = Loss(0.0, 0.0)


def total(losses: Iterable[Loss]) -> Loss:
    """The sum of several losses: that of all sites together."""
    return sum(losses, NOTHING)


def measured(wanted: Sequence[Pair], got: Sequence[Pair]) -> Loss:
    """The loss where each ``B·A`` of ``got`` replaces that of ``wanted``; by QR, so that nothing cancels."""
    found = NOTHING
    for (A, B), (A1, B1) in zip(wanted, got, strict=True):
        gap = norm(np.concatenate([A1, A]), np.concatenate([B1, -B], axis=1))
        found += Loss(norm(A, B) ** 2, gap**2)
    return found


def compared(wanted: Sequence[Pair], got: Sequence[Pair]) -> Loss:
    """The same through r×r products: many times faster, and right where the error is far above 1e-8."""
    found = NOTHING
    for (A, B), (A1, B1) in zip(wanted, got, strict=True):
        gap = _energy(np.concatenate([A1, A]), np.concatenate([B1, -B], axis=1))
        found += Loss(_energy(A, B), max(0.0, gap))
    return found


def rounding(wanted: Sequence[Pair], got: Sequence[Pair]) -> Loss:
    """The same where ``got`` is ``wanted`` number by number, rounded: B·A − B₁·A₁ = (B − B₁)·A + B₁·(A − A₁)."""
    found = NOTHING
    for (A, B), (A1, B1) in zip(wanted, got, strict=True):
        gap = _energy(np.concatenate([A, A - A1]), np.concatenate([B - B1, B1], axis=1))
        found += Loss(_energy(A, B), max(0.0, gap))
    return found


def _energy(A: Matrix, B: Matrix) -> float:
    """‖B·A‖²_F from the Gram matrices of both."""
    return float(np.vdot(B.T @ B, A @ A.T))


def assembled(pairs: Sequence[Pair], dtype: str, like: LowRank, scale: float = 1.0) -> LowRank:
    """The delta scale · B·A of some pairs of one rank, rounded to ``dtype``; stacked where ``like`` is."""
    A, B = np.concatenate([A for A, _ in pairs]), pairs[0][1]
    if like.experts is not None:  # B holds the experts fastest
        B = np.stack([B for _, B in pairs]).transpose(1, 2, 0).reshape(B.shape[0], -1)
    rank = pairs[0][0].shape[0]
    return LowRank(
        _rounded(A, dtype),
        _rounded(B, dtype),
        alpha=scale * rank,
        embedding=like.embedding,
        experts=like.experts,
    )


def scaled(delta: LowRank) -> list[Pair]:
    """The factors of a delta, its scale in B."""
    return [(A, delta.scale * B) for A, B in delta.factors()]


def identical(one: Tensor, other: Tensor) -> bool:
    """True where two tensors are the same to the byte; compared a piece at a time."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and all(a == b for a, b in zip(one.chunks(), other.chunks(), strict=True))


def _rounded(array: Matrix, dtype: str) -> Tensor:
    with np.errstate(over="ignore"):  # what has no room in the dtype is found when the result is checked
        return Tensor.of(array).cast(dtype)
