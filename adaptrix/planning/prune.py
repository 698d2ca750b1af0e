"""Plan transforms that lose something on purpose, and say what."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from types import MappingProxyType

import numpy as np

from adaptrix.architecture import Site
from adaptrix.delta import Delta, Matrix
from adaptrix.errors import Problem, UsageError, refuse
from adaptrix.planning.plan import Plan


def pruned(plan: Plan) -> Plan:
    """The plan with nothing but its active deltas: inactive ones removed, overrides in place of originals,
    gains multiplied into the alphas. Raises :class:`UsageError` where nothing would be left."""
    if plan.complete:
        return plan
    kept = {site: plan.delta(site).multiplied(plan.gains.get(_layer(site), 1.0)) for site in plan.sites}
    if not kept:
        found = f"no delta is in {plan.describe()}"
        raise UsageError(Problem("plan-empty", "prune", found, "layers that the adapter changes"))
    dropped = [site for site in plan.bound.deltas if site not in kept]
    says = f"dropped {len(dropped)} of {len(plan.bound.deltas)} deltas"
    if plan.overrides:
        says += f", replaced {len(plan.overrides)} by those of the plan"
    note = Problem("left-out", "plan", f"{says}; {plan.share} had been in force", severity="note")
    targets = {site: plan.bound.targets[site] for site in kept}
    deltas = {targets[site]: delta for site, delta in kept.items()}
    adapter = replace(plan.bound.adapter, deltas=MappingProxyType(deltas), altered=True, recorded=None)
    bound = replace(plan.bound, adapter=adapter, deltas=MappingProxyType(kept), targets=MappingProxyType(targets))
    notes = (*plan.notes, note)
    return replace(plan, bound=bound, overrides=MappingProxyType({}), gains=MappingProxyType({}), notes=notes)


def _layer(site: Site) -> int:
    return -1 if site.layer is None else site.layer


def cast(plan: Plan, dtype: str) -> Plan:
    """The plan with every trained tensor of a delta in another dtype; extras stay as they are, and a base's S, U and V.

    Raises :class:`RefusedError` where a number is too large for the dtype.
    """
    deltas = {site: _cast(delta, dtype) for site, delta in plan.bound.deltas.items()}
    overrides = {site: _cast(delta, dtype) for site, delta in plan.overrides.items()}
    errors = [(_error(t, c), s) for s, d in plan.bound.deltas.items() for t, c in _pairs(d, deltas[s])]
    errors += [(_error(t, c), s) for s, d in plan.overrides.items() for t, c in _pairs(d, overrides[s])]
    if lost := [str(site) for error, site in errors if not isfinite(error)]:
        found = f"{len(lost)} tensors have numbers beyond the range of {dtype}"
        raise refuse("overflow", lost[0], found, "another dtype", "BF16 has the range of F32.")
    worst = max((error for error, _ in errors), default=0.0)
    note = Problem(
        "approximation",
        "plan",
        f"deltas rounded to {dtype}; largest relative error of a tensor {worst:.2e}",
        severity="note",
    )
    adapter = replace(
        plan.bound.adapter, deltas=MappingProxyType({plan.bound.targets[s]: d for s, d in deltas.items()})
    )
    bound = replace(plan.bound, adapter=adapter, deltas=MappingProxyType(deltas))
    same = all(t.dtype == dtype for d in plan.overrides.values() for t in d.tensors().values())
    return replace(
        plan,
        bound=bound,
        overrides=MappingProxyType(overrides),
        notes=(*plan.notes, note),
        fit=plan.fit if same else None,
    )


def _cast(delta: Delta, dtype: str) -> Delta:
    with np.errstate(over="ignore", invalid="ignore"):  # the errors are measured, and refused if they are infinite
        return delta.cast(dtype)


def _pairs(before: Delta, after: Delta) -> list[tuple[Matrix, Matrix]]:
    """The numbers that were rounded, before and after."""
    return list(zip(before.compared(), after.compared(), strict=True))


def _error(original: Matrix, rounded: Matrix) -> float:
    """‖original − rounded‖ / ‖original‖, over the finite numbers; not finite where one left the range."""
    finite = np.isfinite(original)
    with np.errstate(over="ignore", invalid="ignore"):
        size = float(np.linalg.norm(original[finite]))
        return float(np.linalg.norm((original - rounded)[finite])) / size if size else 0.0
