"""What spectral deltas do to a base: each changes the very weight whose decomposition it is of.

All weights are held to the hashes that the deltas name before the first is decomposed, which may take long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adaptrix.architecture import Site
from adaptrix.decomposing import SvdCache, require_weight, resolve
from adaptrix.delta import Spectral
from adaptrix.errors import Problem, RefusedError
from adaptrix.merging.change import Change, SpectralTerm
from adaptrix.merging.places import Places
from adaptrix.planning.plan import Plan
from adaptrix.progress import Counted
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A weight of the base that a spectral delta is of. ``turned``: it is stored ``[in, out]``."""

    site: Site
    delta: Spectral
    name: str
    tensor: Tensor
    turned: bool

    @property
    def where(self) -> str:
        return f"{self.site} ({self.name})"


def spectral_changes(plan: Plan, places: Places, display: Counted) -> tuple[dict[str, Change], list[Problem]]:
    """The change of each weight by its name, or every reason why there is none."""
    deltas = [(site, delta) for site in plan.sites if isinstance(delta := plan.delta(site), Spectral)]
    found, problems = held_weights(plan, places, deltas)
    if problems or not found:
        return {}, problems
    changes: dict[str, Change] = {}
    cache = SvdCache()
    with display("decomposing", len(found)) as advance:
        for weight in found:
            try:
                changes[weight.name] = _change(weight, plan, cache)
            except RefusedError as error:
                problems += error.problems
            advance(1)
    return changes, problems


def held_weights(
    plan: Plan, places: Places, deltas: Iterable[tuple[Site, Spectral]]
) -> tuple[list[Weight], list[Problem]]:
    """The weights of some deltas' sites, and a problem for each that is not the one that its delta names."""
    found: list[Weight] = []
    problems: list[Problem] = []
    for site, delta in deltas:
        for name in places.whole(site):
            tensor = places.tensors[name]
            weight = Weight(site, delta, name, tensor, _is_turned(plan, site, delta, tensor))
            found.append(weight)
            try:
                require_weight(delta, tensor, turned=weight.turned, where=weight.where)
            except RefusedError as error:
                problems += error.problems
    return found, problems


def _is_turned(plan: Plan, site: Site, delta: Spectral, weight: Tensor) -> bool:
    """Whether a weight is stored ``[in, out]``; of an unknown family its shape may tell."""
    if plan.bound.architecture.dims:
        return plan.bound.architecture.roles[site.role].orientation == "conv1d"
    return weight.shape != delta.shape and weight.shape == delta.shape[::-1]


def _change(weight: Weight, plan: Plan, cache: SvdCache) -> Change:
    whole = resolve(weight.delta, weight.tensor, cache, turned=weight.turned, where=weight.where)
    gain = 1.0 if weight.site.layer is None else plan.gains.get(weight.site.layer, 1.0)
    return Change(spectral=SpectralTerm(weight.site, whole, gain), turned=weight.turned)
