"""The checks of a plugin's records, and calls of their functions with errors that name the plugin."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, replace
from functools import partial
from os.path import basename
from typing import Any

from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dialect import Dialect
from adaptrix.architecture.dims import Alternative
from adaptrix.errors import AdaptrixError, Problem, RefusedError
from adaptrix.feature_names import FEATURES
from adaptrix.records import Bundle

_NAME = re.compile(r"[a-z][a-z0-9_-]*")

Blame = Callable[[str], Problem]


class PluginError(Exception):
    """A fault of a plugin, as ``adaptrix plugins`` shows it."""


@contextmanager
def guarded(step: str, *passing: type[Exception]) -> Iterator[None]:
    """Runs a plugin's code: it cannot end the process, and what it prints goes to standard error.

    Errors of the types ``passing`` go through; so do an interrupt and a signal's request to end, which
    are no fault of the plugin.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except passing:
        raise
    except (Exception, SystemExit) as error:  # modules that parse arguments on import raise SystemExit
        raise PluginError(f"{step}: {type(error).__name__}: {error}") from error


def record_name(record: Any) -> Any:
    """The name of a record of any type."""
    return record.family if isinstance(record, Architecture) else record.name


def require_valid(record: object, wanted: type) -> None:
    """Raises ``TypeError`` or ``ValueError`` for a record that cannot be used."""
    if not isinstance(record, wanted):
        raise TypeError(f"it yielded {record!r}, not a record of type {wanted.__name__}")
    name = record_name(record)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a {wanted.__name__} is called {name!r}; a name is of the form {_NAME.pattern}")
    for field in fields(record):  # type: ignore[arg-type]  # every record type is a dataclass
        value, (fits, expected) = getattr(record, field.name), RULES[field.name]
        if not fits(value):
            raise TypeError(f"the {field.name} of {name} {_is(field.name)} {value!r}, not {expected}")


def _is(field: str) -> str:
    return "are" if field.endswith("s") and field not in ("claims", "carries") else "is"


def _names(value: object) -> bool:
    return isinstance(value, tuple | list) and all(name and isinstance(name, str) for name in value)


def _prefixes(value: object) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(isinstance(prefix, str) for prefix in value)


def _patterns(value: object) -> bool:
    return isinstance(value, tuple | list) and bool(value) and all(map(_names, value)) and all(value)


def _roles(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(role, Role) for role in value.values())


def _dims(value: object) -> bool:
    return isinstance(value, Mapping) and _names([*value]) and all(map(_rule, value.values()))


def _rule(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(alternative, Alternative) for alternative in value)


def _dialects(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(dialect, Dialect) for dialect in value.values())


def _features(value: object) -> bool:
    return isinstance(value, Set) and value <= FEATURES.keys()


_CALLABLE = (callable, "a function")
_TEXT = (lambda value: isinstance(value, str), "text")
#: every field of every type of record -> its check, and what the check expects
RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("detect", "read", "claims", "fetch", "config", "generate", "load", "contents"), _CALLABLE),
    **dict.fromkeys(("name", "family", "suffix", "summary", "origin", "format"), _TEXT),
    **dict.fromkeys(("write", "sniff"), (lambda value: value is None or callable(value), "a function or None")),
    "writes": (_names, "a tuple of names"),
    "carries": (_features, f"a set of some of {', '.join(FEATURES)}"),
    "patterns": (_patterns, 'tuples of names in a tuple, as (("*.x",),) is'),
    "model_types": (_names, "a tuple of names"),
    "prefixes": (_prefixes, "a tuple of prefixes"),
    "dims": (_dims, "a mapping from names to tuples of Alternative"),
    "roles": (_roles, "a mapping of roles"),
    "dialects": (_dialects, "a mapping of dialects"),
}

#: function of a record -> what it failed to do
_VERBS = {
    "detect": "detect",
    "read": "read",
    "write": "write",
    "claims": "claim",
    "fetch": "fetch",
    "config": "fetch a config",
    "generate": "generate",
    "load": "load",
    "contents": "read",
    "sniff": "detect",
}


def answerable(record: Any, blame: Blame) -> Any:
    """The record with its functions guarded: an exception other than :class:`AdaptrixError`,
    or a result of the wrong type, becomes a :class:`RefusedError` with ``blame``'s problem."""
    kind = type(record).__name__.lower()
    calls = {name: getattr(record, name, None) for name in _VERBS}  # an architecture has none
    return replace(
        record,
        **{
            name: partial(_called, call, name, f"{kind} {record_name(record)} failed to {_VERBS[name]}", blame)
            for name, call in calls.items()
            if call is not None
        },
    )


def _called(call: Callable[..., Any], name: str, step: str, blame: Blame, *args: Any, **options: Any) -> Any:
    # what the disk says no with while an output is written is no fault of the plugin
    passing = (AdaptrixError, OSError) if name == "write" else (AdaptrixError,)
    try:
        with guarded(step, *passing):
            answer = call(*args, **options)
            if not isinstance(answer, wanted := _wanted(name)):
                raise TypeError(f"it returned {answer!r}, not a {wanted.__name__}")
    except PluginError as error:
        raise RefusedError(blame(f"{error} ({_place(error.__cause__)})")) from error
    return answer


def _wanted(name: str) -> type:
    """The type that a function returns; imported late, since a list of commands needs none."""
    if name in ("read", "generate"):
        from adaptrix.adapter import Adapter

        return Adapter
    if name == "load":
        import click

        return click.Command
    return {"fetch": Bundle, "config": Mapping}.get(name, object)


def _place(error: BaseException | None) -> str:
    """The file and line that raised an error, for the plugin's author."""
    frame = traceback.extract_tb(error.__traceback__ if error else None)[-1]
    return f"{basename(frame.filename)}, line {frame.lineno}"
