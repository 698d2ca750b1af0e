"""What users ask of a session, checked before anything is looked up: names, weights, rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from math import inf, isfinite
from numbers import Real

from adaptrix.errors import Problem, UsageError

_ROW = "one adapter, or None for the base, for each row of the batch"


def weights_of(choice: object) -> dict[str, float]:
    """A choice other than the base, as weights by name. Raises :class:`UsageError` with all that is wrong."""
    if isinstance(choice, str) and choice:
        return {choice: 1.0}
    if not isinstance(choice, Mapping):
        remedy = "session.load(name, adapter) gives an adapter a name; session.route takes a list, a name a row."
        expected = "a name, weights by name, or None for the base"
        raise UsageError(Problem("choice", "choice", _shown(choice), expected, remedy))
    if not choice:
        raise UsageError(Problem("weights", "choice", "no weights", "at least one adapter's", "None is the base."))
    problems = [problem for name, weight in choice.items() for problem in _term_problems(name, weight)]
    if problems:
        raise UsageError(problems)
    return {name: float(weight) for name, weight in choice.items()}


def rows_of_names(rows: object) -> tuple[str | None, ...]:
    """The rows of a route. Raises :class:`UsageError` with all that is wrong."""
    if isinstance(rows, str):
        remedy = f"session.use({rows!r}) is for the whole batch, session.route([{rows!r}]) for a batch of one."
        raise UsageError(Problem("route", "route", "a string", _ROW, remedy))
    if not isinstance(rows, Iterable) or isinstance(rows, (bytes, Mapping, Set)):
        remedy = "Weighted sums are for a whole batch: session.use(weights)."
        raise UsageError(Problem("route", "route", _shown(rows), f"a list: {_ROW}", remedy))
    found = tuple(rows)
    problems = [Problem("route", f"row {number}", _shown(row), "a name, or None for the base",
                        "Weighted sums are for a whole batch: session.use(weights).")
                for number, row in enumerate(found) if not (row is None or isinstance(row, str))]  # fmt: skip
    if not found:
        problems = [Problem("route", "route", "no rows", _ROW, "session.use(None) is the base for any batch.")]
    if problems:
        raise UsageError(problems)
    return found


def require_name(name: object) -> str:
    """The name, if it is one that an adapter can have. Raises :class:`UsageError`."""
    if isinstance(name, str) and name:
        return name
    found = "an empty name" if name == "" else _shown(name)
    raise UsageError(Problem("name", "name", found, "a string of at least one character", "Name the adapter."))


def _term_problems(name: object, weight: object) -> Iterable[Problem]:
    if not isinstance(name, str):
        yield Problem("weights", f"weights[{name!r}]", _shown(name), "the name of an adapter", "None is the base.")
    elif not isinstance(weight, Real):
        remedy = "float(weight) makes one of a text or a tensor, without a gradient."
        yield Problem("weights", f"weights[{name!r}]", _shown(weight), "a finite number", remedy)
    elif not isfinite(_float(weight)):
        yield Problem(
            "weights",
            f"weights[{name!r}]",
            f"{_float(weight)}",
            "a finite number",
            "0 leaves it out, 1 is the adapter itself.",
        )


def _float(weight: Real) -> float:
    """The number, Inf where it is too large for one."""
    try:
        return float(weight)
    except OverflowError:
        return inf


def _shown(thing: object) -> str:
    return "nothing (None)" if thing is None else f"{repr(thing)[:60]} of type {type(thing).__name__}"
