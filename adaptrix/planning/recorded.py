"""The plan that an injection file was written with: followed where no other is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from adaptrix.adapter import Recorded
from adaptrix.binding.bind import BoundAdapter
from adaptrix.errors import Problem, UsageError
from adaptrix.planning.plan import Plan, fit_as_dict, make_plan
from adaptrix.planning.recorded_sites import layers_here, sites_here

if TYPE_CHECKING:
    from adaptrix.schemas.shared import PlanJSON

_CHOOSE = "Choose --layers all to have every delta act."


def plan_of(bound: BoundAdapter, policy: str | None) -> Plan:
    """The plan of a policy; where none is given, the one that an injection file was written with, or ``all``.

    Raises :class:`UsageError` as :func:`make_plan` and :func:`recorded_plan` do.
    """
    recorded = bound.adapter.recorded
    if policy is None and recorded is not None:
        return recorded_plan(bound, recorded)
    return make_plan(bound, "all" if policy is None else policy)


def left_out(bound: BoundAdapter) -> Iterator[Problem]:
    """The warnings of an adapter's own plan for whoever looks at it: that it leaves deltas out, or cannot be made."""
    try:
        plan = plan_of(bound, None)
    except UsageError as error:
        yield from (replace(problem, severity="warning") for problem in error.problems)
    else:
        yield from inactive(plan, None, "`attach` and `merge` follow it, unless --layers all is chosen.")


def inactive(plan: Plan, policy: str | None, remedy: str = _CHOOSE) -> Iterator[Problem]:
    """A warning where an injection file's own plan leaves deltas out; none where a ``policy`` was asked for."""
    recorded = plan.bound.adapter.recorded
    if policy is None and plan.idle and recorded is not None and not recorded.chosen:
        acting = f"{len(plan.sites)} of {len(plan.bound.deltas)} deltas act, {plan.share}"
        found = f"its file's plan {plan.policy} is followed: {acting}"
        yield Problem("left-out", plan.bound.adapter.name, found, remedy=remedy, severity="warning")


def recorded_plan(bound: BoundAdapter, recorded: Recorded) -> Plan:
    """The plan that an injection file was written with."""
    named, here = sites_here(bound, recorded), layers_here(bound, recorded)
    stacks = {role.depth for role in bound.architecture.roles.values()}
    unknown = [f"plan.layers.{stack}" for stack, layers in here.items() if layers and stack not in stacks]
    moved = sorted(recorded.overrides.keys() - named.keys()) + unknown
    if moved:
        raise UsageError(
            Problem(
                "plan-mismatch",
                ", ".join(moved[:5]),
                f"the file's plan is for {recorded.family!r} as its writer knew it, which has no such thing here",
                "the architecture it was written with",
                "Install the plugin it came from, or give --layers to make a new plan.",
            )
        )
    overrides = {named[name]: delta for name, delta in recorded.overrides.items()}
    notes = tuple(Problem("summary", "plan", note, severity="note") for note in recorded.notes)
    deltas = MappingProxyType(overrides)
    return Plan(bound, recorded.policy, here, recorded.gains, deltas, notes, recorded.fit)


def recorded_as_dict(bound: BoundAdapter) -> PlanJSON | None:
    """The plan of an injection file; None for another adapter. Its sites are None where they are not to be found."""
    recorded = bound.adapter.recorded
    if recorded is None:
        return None
    try:
        return recorded_plan(bound, recorded).as_dict()
    except UsageError:
        layers = {stack: list(found) for stack, found in recorded.layers.items()}
        return {
            "policy": recorded.policy,
            "layers": layers,
            "sites": None,
            "of": len(bound.deltas),
            "retained": None,
            "fit": fit_as_dict(recorded.fit),
        }
