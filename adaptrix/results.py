"""What a check found, and what a conversion has done."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptrix.binding.bind import BoundAdapter, nonfinite
from adaptrix.errors import Problem, errors_in
from adaptrix.planning.plan import Plan
from adaptrix.records import Bundle


@dataclass(frozen=True)
class CheckReport:
    """What a check found. ``bound`` is None where the files could not be read at all; ``bundle`` is the
    files, where the subject was a uri."""

    subject: str
    problems: tuple[Problem, ...]
    bound: BoundAdapter | None = None
    bundle: Bundle | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing found is an error."""
        return not errors_in(self.problems)

    def examined(self) -> CheckReport:
        """The report after a look at every number: NaN and Inf are problems, each told once."""
        if self.bound is None:
            return self
        return replace(self, problems=tuple(dict.fromkeys((*self.problems, *nonfinite(self.bound)))))

    def noted(self) -> CheckReport:
        """The report of what fits, with a note where deltas belong to the very weights of a base: none were read."""
        deltas = self.bound.deltas.values() if self.bound else ()
        owned = [delta.kind for delta in deltas if delta.needs_base]
        if not owned or not self.ok:
            return self
        kinds = " and ".join(sorted(set(owned)))
        found = f"{len(owned)} {kinds} deltas each name the weight that they belong to, and no weights were read"
        remedy = "attach, merge and convert --to peft --base MODEL hold a base's weights to them."
        note = Problem("unverified", self.subject, found, remedy=remedy, severity="note")
        return replace(self, problems=(*self.problems, note))

    def as_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "ok": self.ok, "problems": [problem.as_dict() for problem in self.problems]}


@dataclass(frozen=True)
class Conversion:
    """A conversion that was done: the file or folder written, the plan in it, all that was said, and how many
    tensors and bytes of tensors there are in what was written."""

    path: Path
    plan: Plan
    problems: tuple[Problem, ...]
    tensors: int
    nbytes: int
