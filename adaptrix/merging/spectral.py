"""The changes of a base by spectral deltas: each changes the weight whose decomposition it belongs to.

All weights are checked against the hashes that the deltas record before the first is decomposed, which may take long.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptrix.architecture import Site
from adaptrix.base.sites import BaseSites
from adaptrix.base.svd import SvdCache, resolve
from adaptrix.base.vectors import SpectralWeight, checked_weights
from adaptrix.delta import Spectral
from adaptrix.errors import Problem, RefusedError
from adaptrix.merging.tensor_change import SpectralTerm, TensorChange
from adaptrix.planning.plan import Plan
from adaptrix.progress import Counted


def spectral_changes(
    plan: Plan, deltas: Mapping[Site, Spectral], sites: BaseSites, display: Counted
) -> tuple[dict[str, TensorChange], list[Problem]]:
    """The change of each weight by its name, or every reason why there is none."""
    found, problems = checked_weights(plan, sites, deltas.items())
    if problems or not found:
        return {}, problems
    changes: dict[str, TensorChange] = {}
    cache = SvdCache()
    with display("decomposing", len(found)) as advance:
        for weight in found:
            try:
                changes[weight.name] = _change(weight, plan, cache)
            except RefusedError as error:
                problems += error.problems
            advance(1)
    return changes, problems


def _change(weight: SpectralWeight, plan: Plan, cache: SvdCache) -> TensorChange:
    whole = resolve(weight.delta, weight.tensor, cache, turned=weight.turned, where=weight.where)
    gain = 1.0 if weight.site.layer is None else plan.gains.get(weight.site.layer, 1.0)
    return TensorChange(spectral=SpectralTerm(weight.site, whole, gain), turned=weight.turned)
