"""Adapters whose modules a base has under other names: bound again under the names of the base's model class."""

from __future__ import annotations

from dataclasses import replace

from adaptrix.base.model_view import without_numbers
from adaptrix.base.names import ModelNames, renamed
from adaptrix.base.sites import is_kept
from adaptrix.binding.bind import BoundAdapter
from adaptrix.errors import AdaptrixError
from adaptrix.pipeline import Pipeline
from adaptrix.results import CheckReport


def in_names_of(base: str, report: CheckReport, pipeline: Pipeline) -> CheckReport:
    """The report of the adapter under the names of the base's model class, where its family does not know them.

    The report as it is where there is nothing to rename, and where transformers has no class for the base.
    Raises :class:`RefusedError` as :func:`adaptrix.base.names.renamed`.
    """
    bound = report.bound
    if bound is None or not _foreign(bound):
        return report
    try:
        names = ModelNames(without_numbers(pipeline.base_config(base), base))
    except AdaptrixError:
        return report
    adapter = renamed(bound.adapter, names, bound.architecture.locate if bound.architecture.dims else lambda _: None)
    if adapter is bound.adapter:
        return report
    again = pipeline.bind(adapter, base)
    return replace(report, bound=again, problems=again.problems)


def _foreign(bound: BoundAdapter) -> bool:
    """True where a module of the adapter is none of the family, or the family is not known."""
    return len(bound.deltas) < len(bound.adapter.deltas) or any(
        is_kept(bound.architecture.roles[site.role]) for site in bound.deltas
    )
