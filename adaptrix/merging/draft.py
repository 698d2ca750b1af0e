"""Plans of merges: the change of each tensor of the base, decided before anything is written."""

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
from adaptrix.merging.names import in_names_of
from adaptrix.merging.options import MergeOptions, QloraBase
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.merging.tied import is_tied, tied_changes, tied_parameters, tied_problems, vocabulary
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import Plan, powerless
from adaptrix.planning.recorded import inactive, plan_of
from adaptrix.progress import Counted, uncounted
from adaptrix.records import Bundle
from adaptrix.results import CheckReport


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A merge that has passed every check; nothing of it is written yet.

    - ``plan``: of the adapter; ``base``: its weights on this disk.
    - ``changes``: tensor name -> its change, for the tensors that change.
    - ``vocabulary``: the number of tokens where the merge changes it, else None.
    - ``problems``: warnings and notes.
    - ``bundle``: the adapter's files, None for one in memory.
    - ``linear``: see :meth:`BaseSites.linear`.
    """

    plan: Plan
    base: BaseCheckpoint
    changes: Mapping[str, TensorChange]
    vocabulary: int | None
    problems: tuple[Problem, ...]
    bundle: Bundle | None = None
    linear: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))
    allow_nonfinite: bool = False

    def on(self, base: QloraBase) -> MergePlan:
        """The same merge into the base as dequantised from NF4, or into its full precision."""
        changes = {name: replace(change, nf4=False) for name, change in self.changes.items() if not change.empty}
        if base == "nf4":
            changes |= {name: _in_nf4(changes.get(name), turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes)

    def base_alone(self) -> MergePlan:
        """The base as dequantised from NF4, with nothing merged into it."""
        changes = {name: _in_nf4(None, turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes, vocabulary=None)


def _in_nf4(change: TensorChange | None, turned: bool) -> TensorChange:
    return replace(change or TensorChange(), turned=turned, nf4=True)


def draft(pipeline: Pipeline, uri: str, base: str, options: MergeOptions, display: Counted = uncounted) -> MergePlan:
    """Reads the adapter, then the base, and plans the merge.

    - ``uri``: of the adapter; ``base``: a folder or ``owner/name``.
    - ``options``: of the merge.
    - ``display``: opens a bar over the weights of spectral deltas, which are decomposed.

    Raises :class:`AdaptrixError` with every problem.
    """
    report = in_names_of(base, pipeline.read_and_bind(uri, base), pipeline)
    report = report if options.allow_nonfinite else report.examined()
    if not report.ok or report.bound is None:
        raise RefusedError(errors_in(report.problems))
    plan = plan_of(report.bound, options.layers)
    merge = settle(plan, fetch_base(base, pipeline), report, display)
    said = (*merge.problems, *inactive(plan, options.layers))
    merge = replace(merge, problems=said, allow_nonfinite=options.allow_nonfinite)
    if options.qlora_base is None:
        return merge
    _require_low_rank(merge)
    return merge.on(options.qlora_base)


def _require_low_rank(merge: MergePlan) -> None:
    """Raises :class:`RefusedError` for spectral deltas: the dequantised weight has other singular vectors."""
    spectral = [name for name, change in merge.changes.items() if change.spectral is not None]
    if spectral:
        found, remedy = "a spectral delta, which is one of the weight as it is stored", "Merge without --qlora-base."
        raise RefusedError(Problem("kind-unsupported", name, found, "a LoRA", remedy) for name in spectral)


def settle(plan: Plan, base: BaseCheckpoint, report: CheckReport, display: Counted = uncounted) -> MergePlan:
    """The merge of a plan into a base. Raises :class:`RefusedError` with every reason against it."""
    if problems := list(quantised(base)):  # the one reason: codes have other names, shapes and dtypes
        raise RefusedError(problems)
    architecture = plan.bound.architecture
    tensors = base.tensors()
    sites = BaseSites(tensors, architecture, plan.bound.dims)
    view, unseen = _view(plan, sites, base, tied=is_tied(base.config, sites))
    if view is not None:
        sites = BaseSites(tensors, architecture, plan.bound.dims, view)
    tied = is_tied(base.config, sites)
    planner = MergePlanner(plan, sites, tied=tied, display=display)
    planner.run()
    problems += planner.problems
    problems += unseen if errors_in(planner.problems) else ()
    if tied:
        problems += tied_problems(plan, sites)
    elif view is not None:
        problems += tied_parameters(plan, view, planner.changes)
    changes = tied_changes(sites, planner.changes) if tied else planner.changes
    size, contradictions = vocabulary(plan, sites, changes)
    problems += contradictions
    if errors := errors_in(problems):
        raise RefusedError(errors)
    said = (*report.problems, *plan.notes, *powerless(plan), *problems)
    return MergePlan(plan, base, changes, size, said, report.bundle, MappingProxyType(sites.linear()))


def _view(
    plan: Plan, sites: BaseSites, base: BaseCheckpoint, *, tied: bool
) -> tuple[ModelView | None, tuple[Problem, ...]]:
    """The view of the base's model class, where registry and files do not say all; else why there is none."""
    known = all(sites.has(site) and not is_kept(sites.roles[site.role]) for site in plan.sites)
    extras = [key.replace(".base_layer.", ".") for key, extra in plan.bound.adapter.extras.items() if extra.acts]
    if known and all(tied or sites.named(key) for key in extras):
        return None, ()
    try:
        return view_of(base.config, {name: one.shape for name, one in sites.tensors.items()}, base.name), ()
    except RefusedError as error:
        return None, error.problems
