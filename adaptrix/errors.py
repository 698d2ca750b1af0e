"""Problems and the exceptions that carry them.

A check collects :class:`Problem` values; an exception is raised only at the edge where a result can
no longer be given, and then carries every problem found, not the first.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from adaptrix.grouping import grouped
from adaptrix.python_words import in_python

if TYPE_CHECKING:
    from adaptrix.schemas.shared import ProblemJSON

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, unusual or worth saying.

    ``code`` is a stable slug for scripts, ``where`` names a file, tensor or site; the rest is prose.
    Only ``error`` stops the work; a ``warning`` may surprise the user; a ``note`` is for the record.
    """

    code: str
    where: str
    found: str
    expected: str = ""
    remedy: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        """The problem in one line, as Python says it: an option of the command line is an argument."""
        found = self.found if "'" in self.found else in_python(self.found)  # what is quoted stays as it is
        return self._line(found, in_python(self.expected), in_python(self.remedy))

    def in_words(self) -> str:
        """The problem in one line, as the command line says it."""
        return self._line(self.found, self.expected, self.remedy)

    def _line(self, found: str, expected: str, remedy: str) -> str:
        text = f"{self.where}: {found}" if self.where else found
        if expected:
            text += f"; expected {expected}"
        return f"{text}. {remedy}" if remedy else text

    def as_dict(self) -> ProblemJSON:
        return {
            "code": self.code,
            "where": self.where,
            "found": self.found,
            "expected": self.expected,
            "remedy": self.remedy,
            "severity": self.severity,
        }


class AdaptrixWarning(UserWarning):
    """A warning of a public function: something unexpected that is no reason to stop."""


class AdaptrixError(Exception):
    """Base of every error that Adaptrix raises on purpose.

    ``problems`` holds all that was found; ``exit_code`` is what the command line ends with
    (1 the check found problems, 2 usage, 3 a source could not be reached). The text is of one line for every group of
    problems that differ in their place alone.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, grouped(self.problems))))


class RefusedError(AdaptrixError):
    """The input was understood and is not fit for what was asked."""


class UsageError(AdaptrixError):
    """The call itself is off: an unknown policy, a missing option, a missing extra."""

    exit_code = 2


class UnreachableError(AdaptrixError):
    """A source could not be reached: no network, no such repository, no access."""

    exit_code = 3


def refuse(code: str, where: object, found: str, expected: str = "", remedy: str = "") -> RefusedError:
    """A :class:`RefusedError` of a single problem, to be raised by the caller."""
    return RefusedError(Problem(code, str(where), found, expected, remedy))


def errors_in(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems that stop the work."""
    return tuple(problem for problem in problems if problem.severity == "error")


def few(problems: Iterable[Problem], where: str, most: int = 100) -> list[Problem]:
    """The first of some problems, and one that says how many more there are: a hostile file may have a million."""
    found = list(problems)
    rest = found[most:]
    if not rest:
        return found
    severity = max((problem.severity for problem in rest), key=("note", "warning", "error").index)
    return [*found[:most], Problem("more-problems", where, f"there are {len(rest)} more like these", severity=severity)]


def warn_of(problems: Iterable[Problem]) -> None:
    """Issues the warnings among some problems as :class:`AdaptrixWarning`, each once, as of the user's own line."""
    for problem in grouped(dict.fromkeys(problems)):
        if problem.severity == "warning":
            warnings.warn(str(problem), AdaptrixWarning, stacklevel=_calls_to_user() + 1)


def _calls_to_user() -> int:
    """The calls from our caller up to code that is neither ours nor a decorator's."""
    frame, calls, ours = sys._getframe(1), 1, ("adaptrix", "torch", "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame, calls = frame.f_back, calls + 1
    return calls - 1
