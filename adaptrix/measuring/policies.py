"""The plans of an adapter that are measured: those asked for, or a few of every policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from adaptrix.adapter import Adapter, Recorded
from adaptrix.binding.bind import BoundAdapter
from adaptrix.errors import Problem, UsageError
from adaptrix.planning.plan import COUNTED, FITTED, Plan, make_plan
from adaptrix.planning.recorded import recorded_plan

FULL = "all"
#: the name of a file's own plan where no policy gives it
OWN = "own"


def plans(bound: BoundAdapter, policies: Sequence[str]) -> dict[str, Plan]:
    """The plans to measure by name: ``all`` first, then ``policies``, or a few of every kind.

    The plan that an injection file was written with is called ``own``, or by its policy where it was fitted. Raises
    :class:`UsageError` with every policy that makes no sense.
    """
    found = {FULL: make_plan(bound, FULL)}
    problems: list[Problem] = []
    for policy in dict.fromkeys(policies or _usual(bound)):
        try:
            found[policy] = _plan(bound, policy)
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return found


def shadowed(bound: BoundAdapter, chosen: Mapping[str, Plan]) -> Iterator[Problem]:
    """A warning for a policy that is also the name of the file's own plan, which does more than choose layers."""
    own = _recorded(bound)
    if own is None or own.policy not in chosen or _plain(own) or not _plain(chosen[own.policy]):
        return
    found = f"its layers were measured with the deltas as trained; the file's own plan {own.policy} changes them"
    remedy = f"The row {OWN} has it." if OWN in chosen else f"--layers {OWN} measures it."
    yield Problem("measurement-limit", own.policy, found, remedy=remedy, severity="warning")


def planned(plan: Plan) -> Adapter:
    """The adapter as read from an injection file with this plan, so that attaching follows the plan."""
    bound = plan.bound
    recorded = Recorded(
        family=bound.architecture.family,
        known=True,
        dims=bound.dims,
        policy=plan.policy,
        layers=plan.layers,
        gains=plan.gains,
        sites=MappingProxyType({target: str(site) for site, target in bound.targets.items()}),
        overrides=MappingProxyType({str(site): delta for site, delta in plan.overrides.items()}),
        chosen=True,
    )
    return replace(bound.adapter, recorded=recorded)


def _usual(bound: BoundAdapter) -> list[str]:
    """Middle, the file's own plan, and for policies with a number a quarter, half and three quarters of the layers."""
    depth = max(bound.depths.values(), default=0)
    counts = sorted({count for part in (1, 2, 3) if (count := round(part * depth / 4)) > 0})
    return ["middle", *_own_name(bound), *(f"{name}:{count}" for name in COUNTED for count in counts)]


def _own_name(bound: BoundAdapter) -> Iterable[str]:
    """The name of an injection file's plan, if any: its policy, or ``own`` where the policy no longer gives it."""
    own = _recorded(bound)
    if own is None:
        return
    if _fitted(own.policy):
        yield own.policy
    elif not _plain(own) or own.layers != _layers(bound, own.policy):
        yield OWN
    else:
        yield own.policy


def _plan(bound: BoundAdapter, policy: str) -> Plan:
    if policy != OWN and not _fitted(policy):
        return make_plan(bound, policy)
    own = _recorded(bound)
    if own is None or policy not in (OWN, own.policy):
        has = "was read from no injection file" if own is None else f"holds the plan {own.policy}"
        expected = "an injection file with this plan" if own is None else f"{own.policy} or {OWN}"
        remedy = "A plan is fitted by `adaptrix convert … --layers fit:K`." if _fitted(policy) else ""
        raise UsageError(Problem("policy", f"layers {policy}", f"{bound.adapter.name} {has}", expected, remedy))
    return own


def _recorded(bound: BoundAdapter) -> Plan | None:
    recorded = bound.adapter.recorded
    return None if recorded is None else recorded_plan(bound, recorded)


def _fitted(policy: str) -> bool:
    return policy.partition(":")[0] == FITTED


def _plain(plan: Plan) -> bool:
    """True where a plan only chooses layers."""
    return not plan.overrides and all(gain == 1.0 for gain in plan.gains.values())


def _layers(bound: BoundAdapter, policy: str) -> Mapping[str, tuple[int, ...]] | None:
    """The layers of a policy for this adapter; None for an unknown one."""
    try:
        return make_plan(bound, policy).layers
    except UsageError:
        return None
