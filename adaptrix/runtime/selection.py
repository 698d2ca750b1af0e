"""Selections: for each hooked module, the kernel to apply. They are values; switching is choosing another."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from adaptrix.architecture import Site
from adaptrix.planning.plan import Plan
from adaptrix.runtime.gate import Gate, gate_of
from adaptrix.runtime.kernel import ActiveKernel, Kernel
from adaptrix.runtime.mixing import by_row, summed
from adaptrix.runtime.replaced import SiteKernel
from adaptrix.runtime.trainable import Trainable


@dataclass(frozen=True, eq=False)
class Loaded:
    """An adapter as it was loaded once: a version of its own, what it does at each site, and the plan of it."""

    name: str
    version: int
    kernels: Mapping[Site, SiteKernel | Trainable]
    plan: Plan | None = None

    @property
    def gate(self) -> Gate | None:
        """That of an activated LoRA."""
        return gate_of(self.kernels)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """An activated LoRA in a selection: its version and weight, and the rows that use it, None for all."""

    key: tuple[int, float]
    gate: Gate
    rows: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """The content of a slot: an adapter, or a weighted sum of several."""

    slot: int
    kernels: Mapping[Site, Kernel]


@dataclass(frozen=True, eq=False)
class Selection:
    """The kernels to apply by site, and the adapters they are made of; the base has none.

    ``key`` is equal for selections that do the same: versions and weights, or versions by row. ``seats``: where a
    session has slots, those of the rows of a batch, or one for all; None for the base. ``activated``: the activated
    LoRAs among the adapters, and ``grounded`` the key of what is left without them, where there are any. ``rows``: the
    number of adapters, or of the base, that a batch is divided among.
    """

    kernels: Mapping[Site, ActiveKernel] = field(default_factory=dict)
    adapters: tuple[Loaded, ...] = ()
    key: tuple[Any, ...] = ()
    seats: tuple[Resident | None, ...] = ()
    activated: tuple[Term, ...] = ()
    grounded: tuple[Any, ...] = ()
    rows: int = 1

    @property
    def ground(self) -> tuple[Any, ...]:
        """The key of what acts on tokens before any invocation, that of the base where nothing does."""
        return self.grounded if self.activated else self.key

    @property
    def uses(self) -> tuple[Hashable, ...]:
        """The versions and slots that must stay while it is active."""
        return (*(loaded.version for loaded in self.adapters), *(seat for seat in self.seats if seat is not None))

    @property
    def first_layer(self) -> float:
        """The lowest layer that the selection changes, 0 for an embedding; Inf where it changes none."""
        return min((_layer(site, kernel) for site, kernel in self.kernels.items()), default=float("inf"))


BASE = Selection()
#: what this context has chosen, by the number of the session
CHOSEN: ContextVar[Mapping[int, Selection]] = ContextVar("adaptrix_chosen", default=MappingProxyType({}))


def _layer(site: Site, kernel: ActiveKernel) -> float:
    """The lowest layer that a change reaches: an embedding's reaches every layer, a head's none."""
    if site.layer is not None:
        return site.layer
    return 0 if kernel.embedding else float("inf")


def weighted(terms: Sequence[tuple[float, Loaded]]) -> Selection:
    """The selection of a weighted sum of ΔW; one adapter of weight 1 costs nothing."""
    sites = dict.fromkeys(site for _, loaded in terms for site in loaded.kernels)
    kernels = {
        site: summed(site, [(weight, loaded.kernels[site]) for weight, loaded in terms if site in loaded.kernels])
        for site in sites
    }
    key = ("sum", *((loaded.version, weight) for weight, loaded in terms))
    activated = tuple(Term((one.version, weight), one.gate) for weight, one in terms if one.gate is not None)
    left = tuple((one.version, weight) for weight, one in terms if one.gate is None)
    ground = ("sum", *left) if left else ()
    return Selection(kernels, tuple(loaded for _, loaded in terms), key, activated=activated, grounded=ground)


def routed(rows: Sequence[Loaded | None]) -> Selection:
    """The selection of a batch with one adapter, or the base, for each row."""
    present = tuple({id(loaded): loaded for loaded in rows if loaded is not None}.values())
    sites = dict.fromkeys(site for loaded in present for site in loaded.kernels)
    key = ("rows", *(None if loaded is None else loaded.version for loaded in rows))
    kernels = {site: by_row([loaded.kernels.get(site) if loaded else None for loaded in rows]) for site in sites}
    activated = tuple(
        Term((one.version, 1.0), one.gate, tuple(row is one for row in rows)) for one in present if one.gate is not None
    )
    left = tuple(None if row is None or row.gate is not None else row.version for row in rows)
    ground = ("rows", *left) if any(version is not None for version in left) else ()
    return Selection(kernels, present, key, activated=activated, grounded=ground, rows=len(rows))
