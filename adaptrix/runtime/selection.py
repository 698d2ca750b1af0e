"""What is in force: for each hooked module, the kernel to apply. Values; switching is choosing another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptrix.architecture import Site
from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.kernel import Kernel, combined
from adaptrix.runtime.replaced import Change, Mixed, Replaced, kernels_of


@dataclass(frozen=True, eq=False)
class Loaded:
    """An adapter as it was loaded once: a version of its own, and what it does at each site."""

    name: str
    version: int
    kernels: Mapping[Site, Change]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Kernels of a batch whose rows have adapters of their own: all stacked, one a row, zero for the base.

    ``At`` ``[rows, in, r]``, ``Bt`` ``[rows, r, out]``, r the largest rank; ``g`` and ``c`` ``[rows, 1, out]``.
    """

    At: Tensor
    Bt: Tensor
    g: Tensor | None
    c: Tensor | None
    embedding: bool

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to ``y``. Beams of a row lie together, so they share its adapter."""
        count = len(self.At)
        if x.shape[0] % count:
            found = f"{count} adapters for a batch of {x.shape[0]}"
            remedy = "Beams and returned sequences count with their row."
            raise UsageError(Problem("route", "route", found, "one adapter a row", remedy))
        d = self._inner(x, count) @ self.Bt
        if self.g is not None:
            d = d + (self.g - 1) * y.reshape(count, -1, y.shape[-1]).to(d.dtype)
        return (d if self.c is None else d + self.c).view(y.shape)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row's delta added."""
        return (y + self.delta(x, y)).to(y.dtype)

    def _inner(self, x: Tensor, count: int) -> Tensor:
        if not self.embedding:
            return torch.bmm(x.reshape(count, -1, x.shape[-1]).to(self.At.dtype), self.At)
        offsets = torch.arange(count, device=x.device)[:, None] * self.At.shape[1]
        return functional.embedding(x.reshape(count, -1) + offsets, self.At.reshape(-1, self.At.shape[2]))


@dataclass(frozen=True, eq=False)
class Selection:
    """The kernels in force by site, and the adapters they are made of; the base has none.

    ``key`` is equal for selections that do the same: versions and weights, or versions by row.
    """

    kernels: Mapping[Site, Change | Rows | Mixed] = field(default_factory=dict)
    adapters: tuple[Loaded, ...] = ()
    key: tuple[Any, ...] = ()

    @property
    def first_layer(self) -> float:
        """The lowest layer whose input does not depend on the selection; Inf for the base."""
        return min((_layer(site, kernel) for site, kernel in self.kernels.items()), default=float("inf"))


BASE = Selection()


def _layer(site: Site, kernel: Change | Rows | Mixed) -> float:
    """Where a change enters: an embedding's reaches every layer, a head's none."""
    if site.layer is not None:
        return site.layer
    return 0 if kernel.embedding else float("inf")


def weighted(terms: Sequence[tuple[float, Loaded]]) -> Selection:
    """The selection of a weighted sum of ΔW; one adapter of weight 1 costs nothing."""
    sites = dict.fromkeys(site for _, loaded in terms for site in loaded.kernels)
    kernels = {
        site: _sum(site, [(weight, loaded.kernels[site]) for weight, loaded in terms if site in loaded.kernels])
        for site in sites
    }
    key = ("sum", *((loaded.version, weight) for weight, loaded in terms))
    return Selection(kernels, tuple(loaded for _, loaded in terms), key)


def _sum(site: Site, terms: Sequence[tuple[float, Change]]) -> Change:
    """One change for a weighted sum; a module that is replaced whole has none, unless it is alone."""
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else combined(kernels_of(site, terms))


def routed(rows: Sequence[Loaded | None]) -> Selection:
    """The selection of a batch with one adapter, or the base, for each row."""
    present = tuple({id(loaded): loaded for loaded in rows if loaded is not None}.values())
    sites = dict.fromkeys(site for loaded in present for site in loaded.kernels)
    key = ("rows", *(None if loaded is None else loaded.version for loaded in rows))
    return Selection({site: _rows(site, rows) for site in sites}, present, key)


def _rows(site: Site, rows: Sequence[Loaded | None]) -> Rows | Mixed:
    changes = [None if loaded is None else loaded.kernels.get(site) for loaded in rows]
    kernels = [change for change in changes if not isinstance(change, Replaced)]
    return _stacked(kernels) if len(kernels) == len(changes) else Mixed(tuple(changes))


def _stacked(kernels: Sequence[Kernel | None]) -> Rows:
    """Kernels by row, zeros for the base and for what a smaller rank leaves free."""
    known = [kernel for kernel in kernels if kernel is not None]
    first, rank = known[0], max(kernel.rank for kernel in known)
    At = first.At.new_zeros(len(kernels), first.At.shape[0], rank)
    Bt = first.Bt.new_zeros(len(kernels), rank, first.Bt.shape[1])
    for row, kernel in enumerate(kernels):
        if kernel is not None:
            At[row, :, : kernel.rank] = kernel.At
            Bt[row, : kernel.rank] = kernel.Bt
    return Rows(At, Bt, _vectors(kernels, "g", 1.0), _vectors(kernels, "c", 0.0), first.embedding)


def _vectors(kernels: Sequence[Kernel | None], name: str, neutral: float) -> Tensor | None:
    """The kernels' ``g`` or ``c`` as ``[rows, 1, out]``, neutral where there is none; None if nowhere."""
    found: list[Tensor | None] = [None if kernel is None else getattr(kernel, name) for kernel in kernels]
    model = next((vector for vector in found if vector is not None), None)
    if model is None:
        return None
    return torch.stack([model.new_full(model.shape, neutral) if v is None else v for v in found])[:, None]
