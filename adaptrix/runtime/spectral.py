"""The kernels of spectral deltas at one module: of one, of a weighted sum, of a batch's rows.

Singular-value fine-tuning (arXiv 2501.06252) changes a weight W = U·diag(s)·Vᵀ by ΔW = U·diag(d)·Vᵀ, so that

    y ← y + (d ⊙ x·V)·Uᵀ

U and V are the weight's own: there is one pair of them for all adapters, and what is an adapter's own is the vector d.
A weighted sum of adapters is a sum of vectors, and a batch whose rows have adapters of their own multiplies
each row by its own d between the same two products.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptrix.runtime.rows import rows_of


@dataclass(frozen=True, eq=False)
class Axes:
    """The singular vectors of one weight, ``V`` ``[in, k]`` and ``Ut`` ``[k, out]``, in the module's dtype."""

    V: Tensor
    Ut: Tensor


def axes_of(U: Tensor, Vt: Tensor, dtype: torch.dtype) -> Axes:
    """Axes of U ``[out, k]`` and Vᵀ ``[k, in]``, laid out as products of this dtype are fastest on a CPU.

    In fp32 row by row; half precision is multiplied by dot products, and wants the rows of a weight ``[out, in]``.
    """
    U, Vt = U.to(dtype), Vt.to(dtype)
    if dtype.itemsize < torch.float32.itemsize:
        return Axes(Vt.contiguous().T, U.contiguous().T)
    return Axes(Vt.T.contiguous(), U.T.contiguous())


@dataclass(frozen=True, slots=True, eq=False)
class SpectralKernel:
    """``d`` ``[k]``, the plan's gain folded in; the axes are shared by every adapter of the weight."""

    axes: Axes
    d: Tensor
    embedding: ClassVar[bool] = False
    described: ClassVar[str] = "a spectral delta, of full rank"
    reads_output: ClassVar[bool] = False

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output for its input ``x``, in the dtype of the axes."""
        V = self.axes.V
        return ((x.to(V.dtype) @ V) * self.d).to(V.dtype) @ self.axes.Ut

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added; in place where no gradient needs what was there before."""
        V, Ut = self.axes.V, self.axes.Ut
        if x.dtype is not V.dtype or y.dtype is not V.dtype or y.dim() < 2 or not y.is_contiguous():
            return (y + self.delta(x, y)).to(y.dtype)
        inner = torch.mm(x.flatten(0, -2), V)
        if torch.is_grad_enabled() and (y.requires_grad or inner.requires_grad):
            return torch.addmm(y.flatten(0, -2), inner * self.d, Ut).view(y.shape)
        y.flatten(0, -2).addmm_(inner.mul_(self.d), Ut)
        return y

    @property
    def family(self) -> Hashable:
        """The axes: vectors over the same ones add up."""
        return self.axes

    def numbers(self) -> Iterator[Tensor]:
        """The vector d; the axes are the base's."""
        yield self.d

    def agrees(self, loaded: object) -> bool:
        """True if d is that of the one loaded, within the precision of its dtype."""
        return isinstance(loaded, SpectralKernel) and torch.allclose(self.d.to(loaded.d), loaded.d, rtol=1e-2)

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, SpectralKernel]]) -> SpectralKernel:
        """One kernel for a weighted sum over the same axes, exact."""
        (weight, first), *others = terms
        return SpectralKernel(first.axes, sum((w * kernel.d for w, kernel in others), start=weight * first.d))

    @classmethod
    def by_row(cls, kernels: Sequence[SpectralKernel | None]) -> SpectralRowKernels:
        """One kernel for a batch's rows over the same axes."""
        first = next(kernel for kernel in kernels if kernel is not None)
        rows = [torch.zeros_like(first.d) if kernel is None else kernel.d for kernel in kernels]
        without = [kernel is None for kernel in kernels]
        idle = torch.tensor(without, device=first.d.device)[:, None, None] if any(without) else None
        return SpectralRowKernels(first.axes, torch.stack(rows)[:, None], idle)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralRowKernels:
    """A batch whose rows have spectral adapters of their own over the same axes: ``d`` ``[rows, 1, k]``.

    ``idle`` ``[rows, 1, 1]``: the rows that have none, None where all have. They are put to zero and not multiplied by
    it: what overflows there must not become NaN.
    """

    axes: Axes
    d: Tensor
    idle: Tensor | None
    embedding: ClassVar[bool] = False

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[batch, …, out]``. Beams of a row lie together, so they share its adapter."""
        V = self.axes.V
        inner = (x.to(V.dtype) @ V).view(rows_of(x, len(self.d)), -1, V.shape[1]) * self.d
        if self.idle is not None:
            inner = inner.masked_fill(self.idle, 0)
        return (inner @ self.axes.Ut).view(y.shape)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row's delta added."""
        V = self.axes.V
        if x.dtype is not V.dtype or y.dtype is not V.dtype or not y.is_contiguous():
            return (y + self.delta(x, y)).to(y.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            return y + self.delta(x, y)
        inner = torch.mm(x.flatten(0, -2), V)
        by_row = inner.view(rows_of(x, len(self.d)), -1, inner.shape[1]).mul_(self.d)
        if self.idle is not None:
            by_row.masked_fill_(self.idle, 0)
        y.flatten(0, -2).addmm_(inner, self.axes.Ut)
        return y
