"""Adapters that a base's model class is asked about, and bound again by what it says: names of modules, and weights
that are stored ``[in, out]`` and named in ``target_parameters``."""

from __future__ import annotations

from dataclasses import replace

from adaptrix.adapter import Adapter
from adaptrix.base.model_view import without_numbers
from adaptrix.base.names import ModelNames, renamed
from adaptrix.base.sites import is_kept
from adaptrix.binding.bind import BoundAdapter
from adaptrix.binding.stored_weights import stored_weights
from adaptrix.errors import AdaptrixError
from adaptrix.pipeline import Pipeline
from adaptrix.results import CheckReport


def in_names_of(base: str, report: CheckReport, pipeline: Pipeline) -> CheckReport:
    """The report of the adapter under the names of the base's model class, where its family does not know them, and
    with deltas of ΔW ``[out, in]`` where peft describes the weight as it is stored.

    The report as it is where there is nothing to change, and where transformers has no class for the base.
    Raises :class:`RefusedError` as :func:`adaptrix.base.names.renamed`, and where only the class would say how a
    weight is stored.
    """
    if report.bound is None:
        return report
    adapter = _by_class(base, report.bound, pipeline)
    if adapter is report.bound.adapter:
        return report
    again = pipeline.bind(adapter, base)
    return replace(report, bound=again, problems=again.problems)


def _by_class(base: str, bound: BoundAdapter, pipeline: Pipeline) -> Adapter:
    """The adapter as the model class of the base names its modules and stores their weights."""
    stored, foreign = bool(stored_weights(bound.adapter)), _foreign(bound)
    if not (stored or foreign):
        return bound.adapter
    try:
        model = without_numbers(pipeline.base_config(base), base)
    except AdaptrixError:
        if stored:
            raise
        return bound.adapter
    from adaptrix.runtime.stored import as_products  # imports torch, which a command's options do without

    known = bound.architecture.locate if bound.architecture.dims else lambda _: None
    adapter = renamed(bound.adapter, ModelNames(model), known) if foreign else bound.adapter
    return as_products(adapter, dict(model.named_modules()))


def _foreign(bound: BoundAdapter) -> bool:
    """True where a module of the adapter is none of the family, or the family is not known."""
    return len(bound.deltas) < len(bound.adapter.deltas) or any(
        is_kept(bound.architecture.roles[site.role]) for site in bound.deltas
    )
