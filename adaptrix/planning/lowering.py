"""Spectral deltas as LoRA, for formats that hold nothing else: exactly, or at a rank of small enough loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from types import MappingProxyType

import numpy as np

from adaptrix.architecture import Site
from adaptrix.delta import Delta, LowRank, Spectral, Truncation
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan

TOLERANCE = 0.05  # ‖ΔW − ΔW_k‖ / ‖ΔW‖ of a site, by default
_ROUNDED = 1e-3  # of ‖ΔW‖: the largest difference of the measured error from the one by the singular values


def spectral_deltas(plan: Plan) -> dict[str, Spectral]:
    """Every spectral delta of a plan and of its adapter, by its name in an injection file."""
    held = {str(site): delta for site, delta in plan.bound.deltas.items()}
    held |= {f"plan.{site}": delta for site, delta in plan.overrides.items()}
    return {where: delta for where, delta in held.items() if isinstance(delta, Spectral)}


def require_small_loss(plan: Plan, rank: int | None, tolerance: float | None) -> None:
    """Raises :class:`RefusedError` where a rank leaves out more of a ΔW than the tolerance; U and V are not needed."""
    allowed = TOLERANCE if tolerance is None else tolerance
    deltas = spectral_deltas(plan)
    losses = {where: delta.lost(rank).relative for where, delta in deltas.items()}
    over = [where for where, loss in losses.items() if loss > allowed]
    if over:
        worst = max(over, key=lambda where: losses[where])
        enough = max(_rank_for(deltas[where], allowed) for where in over)
        found = f"rank {rank} leaves out {losses[worst]:.1%} of ‖ΔW‖, and more than allowed at {len(over)}"
        remedy = f"--rank {enough} is enough; without --rank it is exact; --max-error allows more."
        expected = f"at most {allowed:.1%} (--max-error)"
        raise refuse("rank-error", worst, f"{found} of {len(deltas)} sites", expected, remedy)


def _rank_for(delta: Spectral, allowed: float) -> int:
    """The smallest rank whose relative error is allowed."""
    sizes = np.sort(np.abs(delta.d))
    squares = (sizes / sizes[-1]) ** 2
    lost = np.cumsum(squares)  # of the smallest, the next to smallest …
    return len(squares) - int(np.searchsorted(lost, allowed**2 * lost[-1], side="right"))


def without_vectors(plan: Plan) -> Plan:
    """The plan without U and V in its spectral deltas."""

    def bare(deltas: Mapping[Site, Delta]) -> dict[Site, Delta]:
        return {s: delta.without_vectors() if isinstance(delta, Spectral) else delta for s, delta in deltas.items()}

    return exchanged(plan, bare(plan.bound.deltas), bare(plan.overrides))


def exchanged(plan: Plan, deltas: Mapping[Site, Delta], overrides: Mapping[Site, Delta]) -> Plan:
    """The plan with other deltas at the same sites, in the adapter as well."""
    by_target = MappingProxyType({plan.bound.targets[site]: delta for site, delta in deltas.items()})
    adapter = replace(plan.bound.adapter, deltas=by_target)
    bound = replace(plan.bound, adapter=adapter, deltas=MappingProxyType(dict(deltas)))
    return replace(plan, bound=bound, overrides=MappingProxyType(dict(overrides)))


def lowered(plan: Plan, rank: int | None) -> Plan:
    """The plan with a LoRA for every spectral delta; itself where there is none.

    A note says what is lost, as measured on the factors that will be written. Raises :class:`RefusedError` where U
    and V are missing, or where the measured error is not the one that the singular values give.
    """
    if not spectral_deltas(plan):
        return plan
    losses: dict[Site, Truncation] = {}
    problems: list[Problem] = []
    deltas = _low_rank(plan.bound.deltas, rank, losses, problems)
    overrides = _low_rank(plan.overrides, rank, losses, problems)
    if problems:
        raise RefusedError(problems)
    replaced = exchanged(plan, deltas, overrides)
    adapter = replace(replaced.bound.adapter, altered=True)
    notes = (*plan.notes, _note(losses, {**deltas, **overrides}))
    reduced = any(loss.relative > _ROUNDED for loss in losses.values())
    return replace(replaced, bound=replace(replaced.bound, adapter=adapter), notes=notes, reduced=reduced)


def _low_rank(
    deltas: Mapping[Site, Delta], rank: int | None, losses: dict[Site, Truncation], problems: list[Problem]
) -> dict[Site, Delta]:
    found = dict(deltas)
    for site, delta in deltas.items():
        if isinstance(delta, Spectral):
            try:
                found[site], losses[site] = _one(delta, rank)
            except RefusedError as error:
                problems += (replace(problem, where=str(site)) for problem in error.problems)
    return found


def _one(delta: Spectral, rank: int | None) -> tuple[LowRank, Truncation]:
    """A LoRA of the delta and its error. Raises :class:`RefusedError` where it would not approximate the delta."""
    if not isfinite(delta.energy()):
        remedy = "--allow-nonfinite lets them into an injection file, and a LoRA of it would hold nothing else."
        raise refuse("nonfinite", "", "NaN or Inf in z or S", "finite numbers", remedy)
    with np.errstate(over="ignore", invalid="ignore"):  # the result is measured
        found_delta, loss = delta.low_rank(rank)
    if not isfinite(loss.absolute):
        raise refuse("overflow", "", "numbers too large for factors in F32", "numbers in the range of F32")
    if not _agree(loss, delta.lost(rank)):
        found = "‖ΔW‖, or what the rank leaves out of it, is not what the singular values give"
        raise refuse("other-svd", "", found, "U and V that are orthonormal", "The file is damaged: fetch it again.")
    return found_delta, loss


def _agree(measured: Truncation, expected: Truncation) -> bool:
    """True where the error and ‖ΔW‖ are as expected."""
    gap = max(abs(measured.absolute - expected.absolute), abs(measured.size - expected.size))
    return gap <= _ROUNDED * expected.size


def _note(losses: Mapping[Site, Truncation], deltas: Mapping[Site, Delta]) -> Problem:
    ranks = sorted({deltas[site].rank for site in losses})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    worst = max(losses, key=lambda site: losses[site].relative)
    error = f"relative error of ΔW at most {losses[worst].relative:.2e} ({worst})"
    found = f"{len(losses)} spectral deltas made LoRA of rank {span}; {error}"
    return Problem("lowered", "plan", found, severity="note")
