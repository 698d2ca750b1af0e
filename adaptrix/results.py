"""Results of checks and of conversions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix.binding.bind import BoundAdapter, nonfinite
from adaptrix.errors import Problem, errors_in
from adaptrix.planning.plan import Plan
from adaptrix.planning.recorded import left_out
from adaptrix.records import Bundle

if TYPE_CHECKING:
    from adaptrix.schemas.reports import CheckJSON, ConversionJSON
    from adaptrix.schemas.shared import WrittenJSON


@dataclass(frozen=True, repr=False)
class CheckReport:
    """Findings of a check. ``source``: the uri as it was given, or the name of an adapter that was given itself.

    ``bound`` is None where the files could not be read at all; ``bundle`` is the files, where there was a uri.
    """

    source: str
    problems: tuple[Problem, ...]
    bound: BoundAdapter | None = None
    bundle: Bundle | None = None

    def __repr__(self) -> str:
        """The source and counts: the problems of an adapter on a wrong base are hundreds."""
        counts = f"{len(self.problems)} problems, {len(errors_in(self.problems))} of them errors"
        return f"<CheckReport {self.source!r}: {'fine' if self.ok else 'not fine'}, {counts}>"

    @property
    def subject(self) -> str:
        """The source, by its name of the version before."""
        warnings.warn("CheckReport.subject is called source now", DeprecationWarning, stacklevel=2)
        return self.source

    @property
    def ok(self) -> bool:
        """True where none of the problems is an error."""
        return not errors_in(self.problems)

    def examined(self) -> CheckReport:
        """The report after a look at every number: NaN and Inf are problems, each listed once."""
        if self.bound is None:
            return self
        return replace(self, problems=tuple(dict.fromkeys((*self.problems, *nonfinite(self.bound)))))

    def noted(self) -> CheckReport:
        """The report of what fits, with what is to be known of it: that its own plan leaves deltas out, and that deltas
        belong to the very weights of a base, of which none were read."""
        if self.bound is None or not self.ok:
            return self
        return replace(self, problems=(*self.problems, *left_out(self.bound), *self._unverified(self.bound)))

    def _unverified(self, bound: BoundAdapter) -> Iterator[Problem]:
        owned = [delta.kind for delta in bound.deltas.values() if delta.needs_base]
        if not owned:
            return
        kinds = " and ".join(sorted(set(owned)))
        found = f"{len(owned)} {kinds} deltas each name the weight that they belong to, and no weights were read"
        remedy = "attach, merge and `convert --to peft --base MODEL` hold a base's weights to them."
        yield Problem("unverified", self.source, found, remedy=remedy, severity="note")

    def as_dict(self) -> CheckJSON:
        return {
            "source": self.source,
            "ok": self.ok,
            "problems": [problem.as_dict() for problem in self.problems],
            "adapter": None if self.bound is None else self.bound.as_dict(),
        }


@dataclass(frozen=True)
class Conversion:
    """A conversion that was done: the file or folder written, the plan in it, all that was said, and how many
    tensors and bytes of tensors there are in what was written. ``source`` as in :class:`CheckReport`; that of what
    was computed is its own name."""

    path: Path
    plan: Plan
    problems: tuple[Problem, ...]
    tensors: int
    nbytes: int
    source: str

    def written(self) -> WrittenJSON:
        """The part of the JSON that is about the output."""
        return {
            "path": str(self.path),
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "adapter": self.plan.bound.as_dict(),
            "plan": self.plan.as_dict(),
        }

    def as_dict(self) -> ConversionJSON:
        problems = [problem.as_dict() for problem in self.problems]
        return {"source": self.source, "ok": True, "problems": problems, **self.written()}
