"""Operands of a computation: adapters, read, checked, and reduced to the deltas that act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from adaptrix.adapter import Adapter
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import LowRank, require_low_rank
from adaptrix.errors import Problem, RefusedError, Severity, errors_in
from adaptrix.pipeline import Pipeline
from adaptrix.planning.prune import pruned
from adaptrix.planning.recorded import plan_of
from adaptrix.records import Bundle

#: for callers without a display
NOT_SHOWN: AbstractContextManager[Any] = nullcontext()

_DOING = "the algebra of adapters"


@dataclass(frozen=True)
class Operand:
    """An adapter as it acts: an injection file's plan, its gains and its overrides are in force.

    ``name``: as the caller gave it; ``bundle``: the files that it was read from; ``problems``: warnings and notes.
    """

    name: str
    bound: BoundAdapter
    bundle: Bundle | None = field(default=None, repr=False)
    problems: tuple[Problem, ...] = ()

    @cached_property
    def deltas(self) -> Mapping[Site, LowRank]:
        """The deltas by site. Raises :class:`RefusedError` for those that are no LoRA, which :func:`gather` does."""
        return require_low_rank(self.bound.deltas, self.name, _DOING)


def gather(pipeline: Pipeline, subjects: Sequence[Adapter | str], base: str | None) -> tuple[Operand, ...]:
    """The operands of a computation. Raises :class:`RefusedError` with every problem of every one of them."""
    found, errors = [], list[Problem]()
    for subject in subjects:
        report = pipeline.read_and_bind(subject, base).examined()
        problems = tuple(_placed(report.problems, report.source, len(subjects)))
        if report.bound is None or not report.ok:
            errors += errors_in(problems)
        elif not report.bound.deltas:
            errors.append(Problem("adapter-empty", report.source, "it has no deltas", "at least one"))
        else:
            bound, notes = _acting(report.bound, report.source)
            operand = Operand(report.source, bound, report.bundle, (*problems, *notes))
            errors += _no_low_rank(operand)
            found.append(operand)
    if errors:
        raise RefusedError(errors)
    return tuple(found)


def _no_low_rank(operand: Operand) -> tuple[Problem, ...]:
    """A problem for every delta of an operand that is no LoRA."""
    try:
        require_low_rank(operand.bound.deltas, operand.name, _DOING)
    except RefusedError as error:
        return error.problems
    return ()


def _placed(problems: Iterable[Problem], name: str, count: int) -> Iterable[Problem]:
    """Problems that name their adapter where there are several; the remedy for NaN is one for computations."""
    for problem in problems:
        if problem.code == "nonfinite":
            problem = replace(problem, remedy="It is damaged: fetch it again, or train it with a smaller step.")
        clear = count == 1 or name in problem.where
        own = name.endswith(problem.where)  # the adapter itself, by its name
        yield problem if clear else replace(problem, where=name if own else f"{name}, {problem.where}")


def _acting(bound: BoundAdapter, name: str) -> tuple[BoundAdapter, tuple[Problem, ...]]:
    """The part of an adapter that acts, and a problem that says so where that is not all of it."""
    plan = plan_of(bound, None)
    if plan.complete:
        return bound, ()
    found, remedy = f"it is taken as it acts: {plan.describe()}", "Convert it with --layers all to take all of it."
    severity: Severity = "warning" if plan.idle else "note"
    return pruned(plan).bound, (Problem("left-out", name, found, remedy=remedy, severity=severity),)


def bundles_of(operands: Iterable[Operand]) -> list[Bundle]:
    """The files of those that were read from files."""
    return [operand.bundle for operand in operands if operand.bundle is not None]


def said_of(operands: Iterable[Operand]) -> list[Problem]:
    """The warnings and notes of all operands."""
    return [problem for operand in operands for problem in operand.problems]
