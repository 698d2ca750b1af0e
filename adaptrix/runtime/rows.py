"""A batch whose rows have adapters of their own.

The factors of the distinct adapters lie side by side, and what is not a row's own is put to zero in between:

    y ← y + own(x·[Aᵀ₁ … Aᵀₙ]) · [Bᵀ₁; …; Bᵀₙ]

so that a token of a mixed batch costs two products, however many adapters there are. Where rows are long that
would waste arithmetic, and neighbouring rows of one adapter are taken together instead. (A batched product over
a copy of the factors for each row is as fast or faster in fp32, but holds an adapter as often as there are rows.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from adaptrix.errors import Problem, UsageError

if TYPE_CHECKING:
    from adaptrix.runtime.kernel import Kernel

#: tokens a row from which on runs of rows are faster (benchmarks/routing.py)
LONG = 16


@dataclass(frozen=True, slots=True, eq=False)
class RowKernels:
    """``At`` ``[in, R]``, ``Bt`` ``[R, out]``, R the sum of the ranks; ``foreign`` ``[rows, 1, R]``: the columns of
    other rows' adapters. They are overwritten and not multiplied by zero: what overflows in one row stays there.
    ``g1`` ``[rows, 1, out]`` is g − 1, ``c`` likewise; both None where no row has any. ``runs``: neighbouring
    rows of one adapter as (first, end, kernel); rows of the base are in none.
    """

    At: Tensor
    Bt: Tensor
    foreign: Tensor
    g1: Tensor | None
    c: Tensor | None
    runs: tuple[tuple[int, int, Kernel], ...]
    embedding: bool

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[batch, …, out]``. Beams of a row lie together, so they share its adapter."""
        count = rows_of(x, len(self.foreign))
        inner = functional.embedding(x, self.At) if self.embedding else x.to(self.At.dtype) @ self.At
        inner = inner.view(count, -1, inner.shape[-1]).masked_fill(self.foreign, 0) @ self.Bt
        if self.g1 is not None:
            inner = inner + self.g1 * y.reshape(count, -1, y.shape[-1]).to(inner.dtype)
        return (inner if self.c is None else inner + self.c).view(y.shape)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row's delta added."""
        dtype = self.At.dtype
        bare = self.g1 is None and self.c is None and not self.embedding
        if not bare or x.dtype is not dtype or y.dtype is not dtype or not y.is_contiguous():
            return (y + self.delta(x, y)).to(y.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
            return y + self.delta(x, y)
        count = rows_of(x, len(self.foreign))
        if x.dim() == 3 and x.shape[1] >= LONG:
            return self._add_runs(x, y, len(x) // count)
        inner = torch.mm(x.flatten(0, -2), self.At)
        inner.view(count, -1, inner.shape[1]).masked_fill_(self.foreign, 0)
        y.flatten(0, -2).addmm_(inner, self.Bt)
        return y

    def _add_runs(self, x: Tensor, y: Tensor, beams: int) -> Tensor:
        for first, end, kernel in self.runs:
            own = y[first * beams : end * beams]
            changed = kernel.add(x[first * beams : end * beams], own)
            if changed is not own:  # of another dtype than the model has by now, so not in place
                own.copy_(changed)
        return y


def rows_of(x: Tensor, count: int) -> int:
    """``count``, if a batch can be divided among that many rows. Raises :class:`UsageError`."""
    repeats_of(x.shape[0], count)
    return count


def repeats_of(rows: int, count: int) -> int:
    """The rows of a batch for each of ``count`` adapters. Raises :class:`UsageError`."""
    if rows % count:
        found = f"{count} adapters for a batch of {rows}"
        remedy = "Beams and returned sequences count with their row."
        raise UsageError(Problem("route", "route", found, "one adapter a row", remedy))
    return rows // count


def side_by_side(kernels: Sequence[Kernel | None]) -> RowKernels:
    """The kernels of a batch's rows, None for the base."""
    distinct = list({id(kernel): kernel for kernel in kernels if kernel is not None}.values())
    first = distinct[0]
    return RowKernels(
        At=torch.cat([kernel.At for kernel in distinct], dim=1),
        Bt=torch.cat([kernel.Bt for kernel in distinct]),
        foreign=_foreign(kernels, distinct)[:, None],
        g1=_vectors([None if k is None or k.g is None else k.g - 1 for k in kernels]),
        c=_vectors([None if k is None else k.c for k in kernels]),
        runs=tuple(_runs(kernels)),
        embedding=first.embedding,
    )


def _foreign(kernels: Sequence[Kernel | None], distinct: Sequence[Kernel]) -> Tensor:
    """A mask ``[rows, R]``, true where a column is of another kernel than the row's own."""
    columns = [kernel for kernel in distinct for _ in range(kernel.rank)]
    return torch.tensor([[own is not other for other in columns] for own in kernels], device=distinct[0].At.device)


def _vectors(vectors: Sequence[Tensor | None]) -> Tensor | None:
    """Vectors by row as ``[rows, 1, out]``, zeros where there is none; None if nowhere."""
    model = next((vector for vector in vectors if vector is not None), None)
    if model is None:
        return None
    return torch.stack([torch.zeros_like(model) if vector is None else vector for vector in vectors])[:, None]


def _runs(kernels: Sequence[Kernel | None]) -> Iterator[tuple[int, int, Kernel]]:
    first = 0
    for _, group in groupby(kernels, key=id):
        run = list(group)
        if run[0] is not None:
            yield first, first + len(run), run[0]
        first += len(run)
