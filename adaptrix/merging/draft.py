"""A merge on paper: what happens to each tensor of the base, settled before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.base.fetch import fetch_base
from adaptrix.base.model_view import ModelView, view_of
from adaptrix.base.quantised import quantised
from adaptrix.base.sites import BaseSites, is_kept
from adaptrix.errors import Problem, RefusedError, errors_in
from adaptrix.merging.drafting import MergePlanner
from adaptrix.merging.options import MergeOptions, QloraBase
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.merging.tied import is_tied, tied_changes, tied_parameters, tied_problems, vocabulary
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import Plan, make_plan, powerless, recorded_plan
from adaptrix.progress import Counted, uncounted
from adaptrix.records import Bundle
from adaptrix.results import CheckReport


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A merge that can be done: nothing of it is written yet. ``linear``: see :meth:`BaseSites.linear`."""

    plan: Plan
    base: BaseCheckpoint
    changes: Mapping[str, TensorChange]
    vocabulary: int | None
    problems: tuple[Problem, ...]
    bundle: Bundle | None = None
    linear: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    allow_nonfinite: bool = False

    def on(self, base: QloraBase) -> MergePlan:
        """The same merge into what NF4 leaves of the base, or into its full precision."""
        changes = {name: replace(change, nf4=False) for name, change in self.changes.items() if not change.empty}
        if base == "nf4":
            changes |= {name: _in_nf4(changes.get(name), turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes)

    def base_alone(self) -> MergePlan:
        """What NF4 leaves of the base, and nothing merged into it."""
        changes = {name: _in_nf4(None, turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes, vocabulary=None)


def _in_nf4(change: TensorChange | None, turned: bool) -> TensorChange:
    return replace(change or TensorChange(), turned=turned, nf4=True)


def draft(pipeline: Pipeline, uri: str, base: str, options: MergeOptions, display: Counted = uncounted) -> MergePlan:
    """Reads the adapter, then the base, and settles what happens to each tensor. Raises :class:`AdaptrixError`.

    ``display`` shows how far the weights of spectral deltas are decomposed.
    """
    report = pipeline.read_and_bind(uri, base)
    report = report if options.allow_nonfinite else report.examined()
    if not report.ok or report.bound is None:
        raise RefusedError(errors_in(report.problems))
    plan = _plan(report, options.layers)
    made = replace(settle(plan, fetch_base(base, pipeline), report, display), allow_nonfinite=options.allow_nonfinite)
    if options.qlora_base is None:
        return made
    _require_low_rank(made)
    return made.on(options.qlora_base)


def _require_low_rank(made: MergePlan) -> None:
    """Raises :class:`RefusedError` for spectral deltas: what NF4 leaves of a weight has other singular vectors."""
    odd = [name for name, change in made.changes.items() if change.spectral is not None]
    if odd:
        found, remedy = "a spectral delta, which is one of the weight as it is stored", "Merge without --qlora-base."
        raise RefusedError(Problem("kind-unsupported", name, found, "a LoRA", remedy) for name in odd)


def _plan(report: CheckReport, layers: str | None) -> Plan:
    assert report.bound is not None  # its caller has looked
    recorded = report.bound.adapter.recorded
    if layers is None and recorded is not None:
        return recorded_plan(report.bound, recorded)
    return make_plan(report.bound, layers or "all")


def settle(plan: Plan, base: BaseCheckpoint, report: CheckReport, display: Counted = uncounted) -> MergePlan:
    """What happens to each tensor of the base. Raises :class:`RefusedError` with every reason against it."""
    if problems := list(quantised(base)):  # the one reason: codes have other names, shapes and dtypes
        raise RefusedError(problems)
    architecture = plan.bound.architecture
    tensors = base.tensors()
    places = BaseSites(tensors, architecture, plan.bound.dims)
    view, unseen = _view(plan, places, base, tied=is_tied(base.config, places))
    if view is not None:
        places = BaseSites(tensors, architecture, plan.bound.dims, view)
    tied = is_tied(base.config, places)
    drafting = MergePlanner(plan, places, tied=tied, display=display)
    drafting.run()
    problems += drafting.problems
    problems += unseen if errors_in(drafting.problems) else ()
    if tied:
        problems += tied_problems(plan, places)
    elif view is not None:
        problems += tied_parameters(plan, view, drafting.changes)
    changes = tied_changes(places, drafting.changes) if tied else drafting.changes
    size, contradictions = vocabulary(plan, places, changes)
    problems += contradictions
    if errors := errors_in(problems):
        raise RefusedError(errors)
    said = (*report.problems, *plan.notes, *powerless(plan), *problems)
    return MergePlan(plan, base, changes, size, said, report.bundle, MappingProxyType(places.linear()))


def _view(
    plan: Plan, places: BaseSites, base: BaseCheckpoint, *, tied: bool
) -> tuple[ModelView | None, tuple[Problem, ...]]:
    """What the base's model class says, where registry and files do not say all; else why it cannot be asked."""
    known = all(places.has(site) and not is_kept(places.roles[site.role]) for site in plan.sites)
    if known and all(tied or places.named(key.replace(".base_layer.", ".")) for key in plan.bound.adapter.extras):
        return None, ()
    try:
        return view_of(base.config, {name: one.shape for name, one in places.tensors.items()}, base.name), ()
    except RefusedError as error:
        return None, error.problems
