"""U and V for the spectral deltas of a plan, from the weights of the base that they belong to.

The modules that read bases and decompose are imported on first use: most conversions need none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import Delta, Spectral, of_class
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.pipeline import Pipeline
from adaptrix.planning.lowering import exchanged
from adaptrix.planning.plan import Plan
from adaptrix.progress import Counted, uncounted

if TYPE_CHECKING:
    from adaptrix.base.sites import BaseSites
    from adaptrix.base.svd import SvdCache
    from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SpectralWeight:
    """A weight of the base, and the spectral delta that belongs to it. ``turned``: it is stored ``[in, out]``."""

    site: Site
    delta: Spectral
    name: str
    tensor: Tensor
    turned: bool

    @property
    def where(self) -> str:
        return f"{self.site} ({self.name})"


@dataclass(frozen=True)
class BaseVectors:
    """Resolves the deltas of a plan against a base; decompositions are kept in a cache.

    Where every delta has its U and V, no ``base`` is needed and none is read.
    """

    pipeline: Pipeline
    display: Counted = uncounted
    cache: SvdCache | None = None

    def __call__(self, plan: Plan, base: str | None) -> Plan:
        """The plan with U and V in every spectral delta.

        Raises :class:`RefusedError` without a base, and with every weight that is not the one that a delta belongs
        to; these are found before anything is decomposed.
        """
        open_sites = [*_unresolved(plan)]
        if not open_sites:
            return plan
        if base is None:
            found = f"{len(open_sites)} spectral deltas without their U and V"
            remedy = "Name the whole base, weights and all, with --base MODEL."
            raise refuse("base-needed", plan.bound.adapter.name, found, "the base that they belong to", remedy)
        from adaptrix.base.svd import SvdCache, resolve

        weights = self._weights(plan, base, open_sites)
        cache = self.cache or SvdCache()
        found_deltas: dict[int, Delta] = {}
        problems: list[Problem] = []
        with self.display("decomposing", len(weights)) as advance:
            for weight in weights:
                try:
                    whole = resolve(weight.delta, weight.tensor, cache, turned=weight.turned, where=weight.where)
                except RefusedError as error:
                    problems += error.problems
                else:
                    found_deltas[id(weight.delta)] = whole
                advance(1)
        if problems:
            raise RefusedError(problems)
        return _with(plan, found_deltas)

    def _weights(self, plan: Plan, base: str, unresolved: list[tuple[Site, Spectral]]) -> list[SpectralWeight]:
        """The base's weight of every site, checked against the hash that the delta records."""
        from adaptrix.base.fetch import fetch_base
        from adaptrix.base.sites import BaseSites

        sites = BaseSites(fetch_base(base, self.pipeline).tensors(), plan.bound.architecture, plan.bound.dims)
        found, problems = checked_weights(plan, sites, unresolved)
        remedy = "Save the base with today's transformers first."
        for site in dict.fromkeys(site for site, _ in unresolved if not sites.whole(site)):
            said = f"{base} has no weight for it"
            problems.append(Problem("module-missing", str(site), said, "the weight, whole", remedy))
        if problems:
            raise RefusedError(problems)
        return found


def checked_weights(
    plan: Plan, sites: BaseSites, deltas: Iterable[tuple[Site, Spectral]]
) -> tuple[list[SpectralWeight], list[Problem]]:
    """The weights of some deltas' sites, and a problem for each whose hash is not the one that its delta records."""
    found: list[SpectralWeight] = []
    problems: list[Problem] = []
    from adaptrix.base.svd import require_weight

    for site, delta in deltas:
        for name in sites.whole(site):
            tensor = sites.tensors[name]
            weight = SpectralWeight(site, delta, name, tensor, _is_turned(plan, site, delta, tensor))
            found.append(weight)
            try:
                require_weight(delta, tensor, turned=weight.turned, where=weight.where)
            except RefusedError as error:
                problems += error.problems
    return found, problems


def _is_turned(plan: Plan, site: Site, delta: Spectral, weight: Tensor) -> bool:
    """True where a weight is stored ``[in, out]``; in an unknown family, where its shape shows it."""
    if plan.bound.architecture.dims:
        return plan.bound.architecture.roles[site.role].orientation == "conv1d"
    return weight.shape != delta.shape and weight.shape == delta.shape[::-1]


def draws(bound: BoundAdapter) -> bool:
    """True where resolving an adapter's deltas may take long enough to display progress."""
    return any(delta.needs_base for delta in bound.deltas.values())


def _unresolved(plan: Plan) -> Iterator[tuple[Site, Spectral]]:
    for deltas in (plan.bound.deltas, plan.overrides):
        yield from ((site, delta) for site, delta in of_class(deltas, Spectral).items() if not delta.resolved)


def _with(plan: Plan, found: dict[int, Delta]) -> Plan:
    """The plan with some deltas replaced, by their ``id``."""
    deltas = {site: found.get(id(delta), delta) for site, delta in plan.bound.deltas.items()}
    return exchanged(plan, deltas, {site: found.get(id(delta), delta) for site, delta in plan.overrides.items()})
