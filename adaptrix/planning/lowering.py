"""Deltas of other kinds as LoRA, for what holds nothing else: exactly, or at a rank that loses little enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from types import MappingProxyType

import numpy as np

from adaptrix.architecture import Site
from adaptrix.delta import Delta, LowRank, Truncation, not_low_rank
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan

TOLERANCE = 0.05  # ‖ΔW − ΔW_k‖ / ‖ΔW‖ of a site, by default
MOST = 512  # the rank that a delta gets unasked: no server takes more
_ROUNDED = 1e-3  # of ‖ΔW‖: the largest difference of the measured error from the one by the singular values


def others(plan: Plan) -> dict[str, Delta]:
    """Every delta of a plan and of its adapter that is no LoRA, by where it is."""
    held = {str(site): delta for site, delta in plan.bound.deltas.items()}
    held |= {f"plan.{site}": delta for site, delta in plan.overrides.items()}
    return not_low_rank(held)


def require_small_loss(plan: Plan, rank: int | None, tolerance: float | None) -> None:
    """Raises :class:`RefusedError` where a rank leaves out more of a ΔW than the tolerance; U and V are not needed."""
    allowed = TOLERANCE if tolerance is None else tolerance
    deltas = others(plan)
    losses = {where: delta.lost(rank).relative for where, delta in deltas.items()}
    over = [where for where, loss in losses.items() if loss > allowed]
    if over:
        worst = max(over, key=lambda where: losses[where])
        enough = max(deltas[where].smallest_rank(allowed) for where in over)
        found = f"rank {rank} leaves out {losses[worst]:.1%} of ‖ΔW‖, and more than allowed at {len(over)}"
        remedy = f"--rank {enough} is enough; without --rank it is exact; --max-error allows more."
        expected = f"at most {allowed:.1%} (--max-error)"
        raise refuse("rank-error", worst, f"{found} of {len(deltas)} sites", expected, remedy)


def require_small_rank(plan: Plan, rank: int | None) -> None:
    """Raises :class:`RefusedError` where a LoRA of the same ΔW would be of a rank that nobody asked for."""
    above = {where: delta.rank for where, delta in others(plan).items() if delta.rank > MOST and not delta.needs_base}
    if rank is None and above:
        where = max(above, key=lambda one: above[one])
        found = f"a LoRA of the same ΔW has rank {above[where]}, and more than {MOST} at {len(above)} sites"
        remedy = "--rank R makes the best ones of rank R within --max-error, and says what they lack."
        raise refuse("rank-error", where, found, f"at most {MOST} without --rank", remedy)


def without_vectors(plan: Plan) -> Plan:
    """The plan with nothing in its deltas that can be computed from the base again: no singular vectors."""

    def bare(deltas: Mapping[Site, Delta]) -> dict[Site, Delta]:
        return {site: delta.without_vectors() for site, delta in deltas.items()}

    return exchanged(plan, bare(plan.bound.deltas), bare(plan.overrides))


def exchanged(plan: Plan, deltas: Mapping[Site, Delta], overrides: Mapping[Site, Delta]) -> Plan:
    """The plan with other deltas at the same sites, in the adapter as well."""
    by_target = MappingProxyType({plan.bound.targets[site]: delta for site, delta in deltas.items()})
    adapter = replace(plan.bound.adapter, deltas=by_target)
    bound = replace(plan.bound, adapter=adapter, deltas=MappingProxyType(dict(deltas)))
    return replace(plan, bound=bound, overrides=MappingProxyType(dict(overrides)))


def lowered(plan: Plan, rank: int | None) -> Plan:
    """The plan with a LoRA for every delta of another kind; itself where there is none.

    A note says what is lost, as measured on the factors that will be written. Raises :class:`RefusedError` where U
    and V are missing, or where the measured error is not the one that the singular values give.
    """
    if not others(plan):
        return plan
    losses: dict[Site, Truncation] = {}
    problems: list[Problem] = []
    deltas = _low_rank(plan.bound.deltas, rank, losses, problems)
    overrides = _low_rank(plan.overrides, rank, losses, problems)
    if problems:
        raise RefusedError(problems)
    made = exchanged(plan, deltas, overrides)
    left = {key: extra for key, extra in made.bound.adapter.extras.items() if extra.kind != "shared"}
    adapter = replace(made.bound.adapter, altered=True, extras=MappingProxyType(left))
    notes = (*plan.notes, _note(losses, {**deltas, **overrides}, {delta.kind for delta in others(plan).values()}))
    reduced = any(loss.relative > _ROUNDED for loss in losses.values())
    return replace(made, bound=replace(made.bound, adapter=adapter), notes=notes, reduced=reduced)


def _low_rank(
    deltas: Mapping[Site, Delta], rank: int | None, losses: dict[Site, Truncation], problems: list[Problem]
) -> dict[Site, Delta]:
    found = dict(deltas)
    for site, delta in not_low_rank(deltas).items():
        try:
            found[site], losses[site] = _one(delta, rank)
        except RefusedError as error:
            problems += (replace(problem, where=str(site)) for problem in error.problems)
    return found


def _one(delta: Delta, rank: int | None) -> tuple[LowRank, Truncation]:
    """A LoRA and what it lacks. Raises :class:`RefusedError` where it would not be what the delta is."""
    if not isfinite(delta.energy()):
        remedy = "--allow-nonfinite lets them into an injection file, and a LoRA of it would hold nothing else."
        raise refuse("nonfinite", "", f"NaN or Inf in {_energetic(delta)}", "finite numbers", remedy)
    with np.errstate(over="ignore", invalid="ignore"):  # what it came to is measured
        made, loss = delta.low_rank(rank)
    if not isfinite(loss.absolute):
        raise refuse("overflow", "", "numbers too large for factors in F32", "numbers in the range of F32")
    if not _agree(loss, delta.lost(rank)):
        found = "‖ΔW‖, or what the rank leaves out of it, does not match the singular values"
        raise refuse("svd-mismatch", "", found, "U and V that are orthonormal", "The file is damaged: fetch it again.")
    return made, loss


def _energetic(delta: Delta) -> str:
    """The tensors that its energy is of, as messages name them: ``z or S``."""
    held = delta.energy_tensors()
    named = (name for name, tensor in delta.tensors().items() if any(tensor is one for one in held))
    return " or ".join(name.rpartition("_")[2] for name in named)


def _agree(measured: Truncation, expected: Truncation) -> bool:
    """True where a measured error and norm equal the expected ones, but for rounding."""
    gap = max(abs(measured.absolute - expected.absolute), abs(measured.size - expected.size))
    return gap <= _ROUNDED * expected.size


def _note(losses: Mapping[Site, Truncation], deltas: Mapping[Site, Delta], kinds: set[str]) -> Problem:
    ranks = sorted({deltas[site].rank for site in losses})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    worst = max(losses, key=lambda site: losses[site].relative)
    error = f"relative error of ΔW at most {losses[worst].relative:.2e} ({worst})"
    if not losses[worst].relative:  # of none is anything cut off
        error = "exact but for rounding"
    found = f"{len(losses)} {' and '.join(sorted(kinds))} deltas made LoRA of rank {span}; {error}"
    return Problem("approximation", "plan", found, severity="note")
