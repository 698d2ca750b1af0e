"""Summaries of adapters: provenance, shapes, and ‖ΔW‖ by role and layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptrix.adapter import Extra, Provenance
from adaptrix.binding.bind import BoundAdapter, summed
from adaptrix.binding.stacks import ranges
from adaptrix.delta import Spectral, of_class
from adaptrix.errors import Problem, errors_in
from adaptrix.planning.recorded import left_out, recorded_as_dict
from adaptrix.schemas.values import number, plain

if TYPE_CHECKING:
    from adaptrix.schemas.reports import ExtraJSON, InspectJSON, ProvenanceJSON, RoleJSON

#: ‖ΔW‖_F by role and layer
Picture = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class RoleSummary:
    """All deltas of one role. ``layers``: ranges such as ``0-7,12``; ``energy``: Σ‖ΔW‖²_F."""

    role: str
    count: int
    layers: str
    shapes: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dtypes: tuple[str, ...]
    energy: float
    kinds: tuple[str, ...] = ("lora",)

    def as_dict(self) -> RoleJSON:
        return {
            "role": self.role,
            "deltas": self.count,
            "layers": self.layers,
            "shapes": [list(shape) for shape in self.shapes],
            "ranks": list(self.ranks),
            "scales": list(map(number, self.scales)),
            "dtypes": list(self.dtypes),
            "energy": number(self.energy),
            "kinds": list(self.kinds),
        }


@dataclass(frozen=True, repr=False)
class Inspection:
    """The summary of an adapter. ``problems`` are those of a check that does not read every number; ``source``: the uri
    as it was given, or the name of an adapter that was given itself."""

    bound: BoundAdapter
    roles: tuple[RoleSummary, ...]
    problems: tuple[Problem, ...]
    source: str

    def __repr__(self) -> str:
        """The source and counts: an adapter has hundreds of deltas."""
        counts = f"{len(self.bound.deltas)} deltas in {len(self.roles)} roles, {len(self.problems)} problems"
        return f"<Inspection {self.source!r}: {self.bound.architecture.family}, {counts}>"

    @property
    def picture(self) -> Picture:
        """‖ΔW‖_F by role (with its part) and layer; experts of a layer add up in squares."""
        squares: dict[str, dict[int, float]] = {summary.role: {} for summary in self.roles if summary.layers}
        for site, energy in self.bound.energies.items():
            if site.layer is not None:
                row = squares[_label(site.role, site.part)]
                row[site.layer] = row.get(site.layer, 0.0) + energy
        return {role: {layer: square**0.5 for layer, square in row.items()} for role, row in squares.items()}

    @property
    def spectral(self) -> str:
        """The modules whose singular values are changed, in words; nothing where none are."""
        found = of_class(self.bound.deltas, Spectral).values()
        if not found:
            return ""
        stored = " and ".join(sorted({delta.basis.dtype for delta in found}))
        backends = " and ".join(sorted({delta.basis.backend for delta in found}))
        here = sum(delta.resolved for delta in found)
        vectors = f"U and V of {here} in the file" if here else "U and V not in the file"
        return f"{len(found)} deltas of weights in {stored}, decomposed by {backends}; {vectors}"

    def drawn(self, most_rows: int = 60, most_layers: int = 400) -> tuple[Picture, tuple[int, ...], str]:
        """The part of the picture that fits: its rows, their layers, and a note on what is left out.

        Every layer of a model of at most ``most_layers``; of a deeper one only those that have a delta.
        """
        picture, depth = self.picture, max(self.bound.depths.values(), default=1)
        rows = dict(list(picture.items())[:most_rows])
        seen = range(depth) if depth <= most_layers else sorted({layer for row in rows.values() for layer in row})
        layers = tuple(seen[:most_layers])
        left_out = {"roles": len(picture) - len(rows), "layers": len(seen) - len(layers)}
        said = [f"{count} more {what}" for what, count in left_out.items() if count]
        said += ["layers without a delta"] if depth > most_layers else []
        return rows, layers, ", ".join(said)

    def as_dict(self) -> InspectJSON:
        bound, adapter = self.bound, self.bound.adapter
        return {
            "source": self.source,
            "ok": not errors_in(self.problems),
            "problems": [problem.as_dict() for problem in self.problems],
            "adapter": bound.as_dict(),
            "provenance": _provenance(adapter.provenance),
            "dims": {name: {"value": v, "origin": bound.dims.origins[name]} for name, v in bound.dims.values.items()},
            "depths": dict(bound.depths),
            "plan": recorded_as_dict(bound),
            "tensors": sum(1 for _ in adapter.tensors()),
            "bytes": sum(tensor.nbytes for _, tensor in adapter.tensors()),
            "roles": [role.as_dict() for role in self.roles],
            "norms": {
                role: {str(layer): number(norm) for layer, norm in row.items()} for role, row in self.picture.items()
            },
            "extras": {key: _extra(extra) for key, extra in adapter.extras.items()},
        }


def _provenance(found: Provenance) -> ProvenanceJSON:
    return {
        "uri": found.uri,
        "format": found.format,
        "commit": found.commit,
        "files": dict(found.files),
        "config": plain(found.config),
    }


def _extra(extra: Extra) -> ExtraJSON:
    return {"kind": extra.kind, "dtype": extra.tensor.dtype, "shape": list(extra.tensor.shape)}


def summarise(bound: BoundAdapter, source: str | None = None) -> Inspection:
    """The inspection of a bound adapter; ``source``: the uri it was read from, None for one that was given itself."""
    groups: dict[str, list[Any]] = {}
    place = {role: i for i, role in enumerate(bound.architecture.roles)}  # the family's own order: q k v o …
    for site in sorted(bound.deltas, key=lambda site: (place[site.role], site.order)):
        groups.setdefault(_label(site.role, site.part), []).append(site)
    roles = tuple(_summary(bound, role, sites) for role, sites in groups.items())
    problems = (*bound.problems, *left_out(bound))
    return Inspection(bound, roles, problems, bound.adapter.name if source is None else source)


def _summary(bound: BoundAdapter, role: str, sites: list[Any]) -> RoleSummary:
    deltas = [bound.deltas[site] for site in sites]
    layers = sorted({site.layer for site in sites if site.layer is not None})
    return RoleSummary(
        role=role,
        count=len(sites),
        layers=ranges(layers),
        shapes=tuple(sorted({delta.shape for delta in deltas})),
        ranks=tuple(sorted({delta.rank for delta in deltas})),
        scales=tuple(sorted({delta.scale for delta in deltas})),
        dtypes=tuple(sorted({tensor.dtype for delta in deltas for tensor in delta.energy_tensors()})),
        energy=summed(bound.energies[site] for site in sites),
        kinds=tuple(sorted({delta.kind for delta in deltas})),
    )


def _label(role: str, part: str | None) -> str:
    return role if part is None else f"{role}.{part}"
