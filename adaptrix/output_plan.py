"""The plan of a conversion: chosen, reshaped, pruned and cast as the options say, in what the format can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import Parametrised, Scale, require_low_rank
from adaptrix.destination import require_carried
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import Problem
from adaptrix.options import Options
from adaptrix.planning.features import needed
from adaptrix.planning.folding import FOLDED
from adaptrix.planning.lowering import lowered, others, require_small_loss, require_small_rank, without_vectors
from adaptrix.planning.plan import Plan, make_plan
from adaptrix.planning.prune import cast, pruned
from adaptrix.planning.recorded import plan_of
from adaptrix.planning.redistribute import reshape_plan
from adaptrix.records import Format


class Resolver(Protocol):
    """Gives spectral deltas the singular vectors of the base's weights."""

    def __call__(self, plan: Plan, base: str | None) -> Plan:
        """The plan with U and V in all of them. Raises :class:`AdaptrixError`."""


def plan_to_write(
    bound: BoundAdapter, options: Options, form: Format, made: Plan | None, resolver: Resolver | None
) -> Plan:
    """The plan to write; ``made``: one that a maker made, as the options say."""
    plan = made or reshape_plan(_chosen(bound, options, form), options.redistribute, options.rank)
    if options.prune:
        plan = pruned(plan)
    plan = _other_kinds(plan, options, form, resolver)
    return cast(plan, dtype_name(options.dtype)) if options.dtype is not None else plan


def _chosen(bound: BoundAdapter, options: Options, form: Format) -> Plan:
    """The plan that the options choose; one that a file was written with only where what it leaves out can go."""
    if options.layers is None and "plan" not in form.carries and not options.prune:
        return make_plan(bound, "all")
    return plan_of(bound, options.layers)


def unfollowed(bound: BoundAdapter, options: Options, form: Format) -> Iterator[Problem]:
    """A warning where a file's own plan leaves deltas out, and the format has no place for what does not act."""
    if options.layers is not None or options.prune or "plan" in form.carries or bound.adapter.recorded is None:
        return
    plan = plan_of(bound, None)
    if plan.idle:
        acting = f"{len(plan.sites)} of {len(bound.deltas)} deltas act, {plan.share}"
        found = f"its file's plan {plan.policy} is not followed, by which {acting}: a {form.name} output has all act"
        remedy = "--prune keeps the plan and drops what it leaves out."
        yield Problem("left-out", bound.adapter.name, found, remedy=remedy, severity="warning")


#: features of deltas that become LoRAs where a format does not carry them
_KINDS = ("spectral", "parametrised", "reparametrised")


def _other_kinds(plan: Plan, options: Options, form: Format, resolver: Resolver | None) -> Plan:
    """The plan with its deltas of other kinds as the format and the options want them."""
    if not others(plan):
        return plan
    odd = [delta for delta in others(plan).values() if not isinstance(delta, Parametrised)]
    lacking = [kind for kind in needed(plan, (*_KINDS, "scales")) if kind not in form.carries]
    held = "spectral" in form.carries or all(isinstance(delta, Scale) for delta in odd)
    kept = held and not lacking
    if kept and odd and options.rank is not None:
        require_low_rank({site: plan.delta(site) for site in plan.sites}, plan.bound.adapter.name, "--rank here")
    if kept and options.vectors == "omit":
        return without_vectors(plan)
    kept = kept and options.rank is None
    if not kept:
        require_carried(plan, form, options, later=(*_KINDS, *FOLDED))  # before a base is fetched and decomposed
        require_small_rank(plan, options.rank)
        require_small_loss(plan, options.rank, options.max_error)
    if resolver is not None and odd and (options.vectors == "include" or not kept):
        plan = resolver(plan, options.base)
    return plan if kept else lowered(plan, options.rank)
