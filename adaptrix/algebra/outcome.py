"""The outcome of a computation with adapters: its path, and what was lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix import atomic
from adaptrix.algebra.factors import Loss, total
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter
from adaptrix.destination import destination, is_folder
from adaptrix.errors import Problem, RefusedError, errors_in
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import make_plan
from adaptrix.records import Bundle
from adaptrix.results import Conversion
from adaptrix.schemas.values import number

if TYPE_CHECKING:
    from adaptrix.schemas.reports import LossJSON, OutcomeJSON


@dataclass(frozen=True)
class Outcome:
    """A result that was written.

    ``losses``: by site, ‖ΔW‖² of the exact result and of the error. ``notes`` say what was done and what it cost;
    ``problems`` are all warnings and notes, these included.
    ``sources`` are the uris as they were given, or the names of adapters that were given themselves; ``base`` likewise.
    """

    conversion: Conversion
    losses: Mapping[Site, Loss]
    notes: tuple[Problem, ...]
    problems: tuple[Problem, ...]
    sources: tuple[str, ...]
    base: str | None

    @property
    def path(self) -> Path:
        """The file or folder written."""
        return self.conversion.path

    @property
    def error(self) -> float:
        """‖error‖ / ‖ΔW‖ over all sites together."""
        return total(self.losses.values()).error

    @property
    def kept(self) -> float:
        """The share of ‖ΔW‖² that is kept, over all sites together."""
        return total(self.losses.values()).kept

    @property
    def ranks(self) -> Mapping[Site, int]:
        return {site: delta.rank for site, delta in self.conversion.plan.bound.deltas.items()}

    def as_dict(self) -> OutcomeJSON:
        """The outcome as a JSON object."""
        return {
            "sources": list(self.sources),
            "base": self.base,
            "ok": True,
            "problems": [problem.as_dict() for problem in self.problems],
            **self.conversion.written(),
            "error": number(self.error),
            "kept": number(self.kept),
            "sites": {str(site): self._loss(site) for site in self.losses},
        }

    def _loss(self, site: Site) -> LossJSON:
        loss = self.losses[site]
        rank = self.conversion.plan.bound.deltas[site].rank
        return {"rank": rank, "error": number(loss.error), "kept": number(loss.kept)}


def require_room(pipeline: Pipeline, name: str, out: str | PathLike[str] | None, options: Options) -> None:
    """Raises :class:`UsageError` where the output exists already, for callers with much work to do before writing."""
    form = next(form for form in pipeline.catalog.formats if form.name == options.to)
    if (path := destination(out if out is None else fspath(out), name, form)) is not None:
        atomic.require_free(path, force=options.force, holds=form.writes, makes=is_folder(out))


def worst(losses: Mapping[Site, Loss]) -> Site:
    """The site of the largest relative error, the first of several."""
    return max(losses, key=lambda site: losses[site].error)


def published(
    pipeline: Pipeline,
    bound: BoundAdapter,
    losses: Mapping[Site, Loss],
    notes: Sequence[Problem],
    out: str | PathLike[str] | None,
    options: Options,
    bundles: Sequence[Bundle],
    said: Sequence[Problem] = (),
    *,
    sources: Sequence[str],
    base: str | None,
) -> Outcome:
    """Writes an adapter with plan ``all``.

    - ``bound``: the adapter to write.
    - ``losses``: by site, for the outcome.
    - ``notes``: of the computation, recorded with the plan.
    - ``out``, ``options``: as for :meth:`Pipeline.publish`.
    - ``bundles``: the files that were read, which the output may not overwrite.
    - ``said``: problems of reading them.
    - ``sources``, ``base``: for the outcome.

    Raises :class:`RefusedError` where the result has errors, or numbers that its dtype cannot hold.
    """
    if errors := [*errors_in(bound.problems), *_overflows(bound)]:
        raise RefusedError(errors)
    plan = replace(make_plan(bound, "all"), notes=tuple(notes))
    done = pipeline.publish(plan, out, options, bundles)
    return Outcome(done, losses, tuple(notes), (*said, *done.problems), tuple(sources), base)


def too_large(site: Site) -> Problem:
    """The problem of an SVD that found no finite numbers: products of the largest leave the range of their dtype."""
    return Problem("overflow", str(site), "its numbers are too large to be multiplied", "finite products")


def _overflows(bound: BoundAdapter) -> Iterator[Problem]:
    for site, energy in bound.energies.items():
        if not isfinite(energy):
            found = f"its numbers have no room in {bound.deltas[site].energy_tensors()[0].dtype}"
            yield Problem("overflow", str(site), found, "finite numbers", "Choose a wider --dtype, such as F32.")
