"""Comparison of two adapters: the angle and the lengths of their ΔW, from r×r products alone.

⟨ΔW₁, ΔW₂⟩ = tr((B₁ᵀB₂)(A₂A₁ᵀ)): no ΔW is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from math import nan, sqrt
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptrix.adapter import Adapter
from adaptrix.algebra.alignment import Alignment, Row, align
from adaptrix.algebra.operands import NOT_SHOWN, Operand, gather
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import LowRank
from adaptrix.errors import Problem
from adaptrix.pipeline import Pipeline
from adaptrix.schemas.values import number

if TYPE_CHECKING:
    from adaptrix.schemas.reports import DiffJSON, LikenessJSON


@dataclass(frozen=True, slots=True)
class Likeness:
    """⟨X, Y⟩, ‖X‖² and ‖Y‖² of two adapters' ΔW at a site; they add up over sites."""

    inner: float = 0.0
    first: float = 0.0
    second: float = 0.0

    def __add__(self, other: Likeness) -> Likeness:
        return Likeness(self.inner + other.inner, self.first + other.first, self.second + other.second)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between them; NaN where one of them is zero."""
        lengths = sqrt(self.first) * sqrt(self.second)
        return max(-1.0, min(1.0, self.inner / lengths)) if lengths else nan

    @property
    def ratio(self) -> float:
        """‖Y‖ / ‖X‖; NaN where X is zero."""
        return sqrt(self.second / self.first) if self.first else nan

    @property
    def distance(self) -> float:
        """‖X − Y‖ / ‖X‖, to about 1e-8; NaN where X is zero."""
        return sqrt(max(0.0, self.first + self.second - 2 * self.inner) / self.first) if self.first else nan

    def as_dict(self) -> LikenessJSON:
        return {"cosine": number(self.cosine), "ratio": number(self.ratio), "distance": number(self.distance)}


@dataclass(frozen=True)
class Comparison:
    """Two adapters side by side. ``sites``: every site that either has, the other's ΔW being zero where it has none.

    ``names``: as the caller gave them; ``adapters``: as they act. ``alignment``: the deltas of both by site.
    ``problems``: those of reading the two, and a warning on what the figures leave out.
    """

    names: tuple[str, str]
    adapters: tuple[BoundAdapter, BoundAdapter]
    alignment: Alignment
    sites: Mapping[Site, Likeness]
    problems: tuple[Problem, ...] = ()

    @cached_property
    def total(self) -> Likeness:
        """The likeness of the two as a whole."""
        return sum(self.sites.values(), Likeness())

    def only(self, which: int) -> tuple[Site, ...]:
        """The sites that only the first (0) or the second (1) has."""
        return tuple(site for site, row in self.alignment.rows.items() if row[1 - which] is None)

    @cached_property
    def roles(self) -> Mapping[str, Likeness]:
        """By role and part, in the family's own order."""
        position = {role: i for i, role in enumerate(self.alignment.identity.architecture.roles)}
        ordered = sorted(self.sites, key=lambda site: (position[site.role], site.order))
        return _grouped((label(site), self.sites[site]) for site in ordered)

    @cached_property
    def cells(self) -> Mapping[int, Mapping[str, Likeness]]:
        """By layer, and in it by role and part; the experts of a layer are taken together."""
        layers = sorted({site.layer for site in self.sites if site.layer is not None})
        return {n: _grouped((label(s), found) for s, found in self.sites.items() if s.layer == n) for n in layers}

    def as_dict(self) -> DiffJSON:
        """The comparison as a JSON object."""
        return {
            "sources": list(self.names),
            "ok": True,
            "problems": [problem.as_dict() for problem in self.problems],
            "adapters": [bound.as_dict() for bound in self.adapters],
            "total": self.total.as_dict(),
            "roles": {role: found.as_dict() for role, found in self.roles.items()},
            "sites": {str(site): found.as_dict() for site, found in self.sites.items()},
            "only": {"first": list(map(str, self.only(0))), "second": list(map(str, self.only(1)))},
        }


def compare_adapters(
    pipeline: Pipeline,
    first: Adapter | str,
    second: Adapter | str,
    base: str | None = None,
    busy: AbstractContextManager[Any] = NOT_SHOWN,
) -> Comparison:
    """The likeness of two adapters by site.

    - ``first``, ``second``: adapters, or their paths and uris.
    - ``base``: a base whose config gives their dims; None infers these from the tensors.
    - ``busy``: entered once everything is fetched, for a display.

    Raises :class:`RefusedError` for adapters of different models.
    """
    operands = gather(pipeline, [first, second], base)
    with busy:
        aligned = align(operands)
        sites = MappingProxyType({site: _likeness(row) for site, row in aligned.rows.items()})
    problems = [problem for operand in operands for problem in (*operand.problems, *_left_out(operand))]
    one, other = operands
    return Comparison((one.name, other.name), (one.bound, other.bound), aligned, sites, tuple(problems))


def label(site: Site) -> str:
    """A role and its part."""
    return site.role if site.part is None else f"{site.role}.{site.part}"


def _grouped(found: Iterable[tuple[str, Likeness]]) -> dict[str, Likeness]:
    groups: dict[str, Likeness] = {}
    for name, likeness in found:
        groups[name] = groups.get(name, Likeness()) + likeness
    return groups


def _likeness(row: Row) -> Likeness:
    one, other = row
    inner = _inner(one, other) if one is not None and other is not None else 0.0
    return Likeness(inner, _inner(one, one) if one else 0.0, _inner(other, other) if other else 0.0)


def _inner(one: LowRank, other: LowRank) -> float:
    """⟨ΔW₁, ΔW₂⟩ over all experts."""
    pairs = zip(one.factors(), other.factors(), strict=True)
    return one.scale * other.scale * sum(float(np.vdot(B1.T @ B2, A1 @ A2.T)) for (A1, B1), (A2, B2) in pairs)


def _left_out(operand: Operand) -> Iterator[Problem]:
    """A warning on the tensors of an adapter that are not compared."""
    adapter = operand.bound.adapter
    magnitudes = sum(delta.magnitude is not None for delta in operand.deltas.values())
    biases = sum(delta.bias is not None for delta in operand.deltas.values())
    counts = {
        "magnitudes of DoRA": magnitudes,
        "biases of B": biases,
        "tensors that are no deltas": len(adapter.extras),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if said:
        yield Problem("left-out", operand.name, f"{said} are not compared, only B·A", severity="warning")
