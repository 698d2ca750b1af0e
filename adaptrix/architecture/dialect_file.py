"""The reader of dialects' TOML files: strict, with every mistake reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from adaptrix.architecture.dialect import Dialect, Name, Rows, Table
from adaptrix.architecture.dims import parse
from adaptrix.errors import Problem, RefusedError

_TOP = {"called", "own", "prefix", "join", "roles"}
_ROLE = {"path", "rows", "heads"}
_SEE = "See registry/README.md."


def read_dialects(folder: Path) -> Iterator[Dialect]:
    """The dialects of a folder that has one for each format, with a file ``<family>.toml`` for each family."""
    for file in sorted(folder.glob("*/*.toml")):
        yield Dialect(file.parent.name, file.stem, partial(read_table, file, file.stem))


def read_table(file: Path, family: str) -> Table:
    """The content of a dialect's file. Raises :class:`RefusedError` with every mistake in it."""
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusedError(Problem("toml-invalid", str(file), str(error), "a TOML file")) from None
    problems = list(_problems(content, f"{file} ({family})"))
    if problems:
        raise RefusedError(problems)
    names = tuple(_name(key, value) for key, value in content.get("roles", {}).items())
    return Table(
        content.get("called", ""),
        names,
        tuple(content.get("own", ())),
        content.get("prefix", ""),
        content.get("join", "."),
    )


def _name(key: str, value: str | Mapping[str, str]) -> Name:
    role, _, part = key.partition(".")
    stated = {"path": value} if isinstance(value, str) else value
    return Name(stated["path"], role, part or None, stated.get("rows", "same"), stated.get("heads"))  # type: ignore[arg-type]  # one of Rows: checked


def _problems(content: Mapping[str, Any], where: str) -> Iterator[Problem]:
    for key in sorted(content.keys() - _TOP):
        yield Problem("toml-invalid", where, f"unknown key {key!r}", f"one of {', '.join(sorted(_TOP))}")
    for key in ("called", "prefix", "join"):
        if not isinstance(content.get(key, ""), str):
            yield Problem("toml-invalid", f"{where} {key}", f"{content[key]!r}", "text")
    own = content.get("own", [])
    if not isinstance(own, list) or not all(isinstance(role, str) for role in own):
        yield Problem("toml-invalid", f"{where} own", f"{own!r}", "a list of roles")
    roles = content.get("roles", {})
    if not isinstance(roles, dict) or not (roles or content.get("own")):
        yield Problem("toml-invalid", f"{where} roles", "no names", "a table from role to name, or own", _SEE)
        return
    for key, value in roles.items():
        yield from _role_problems(value, f"{where} [roles] {key}")


def _role_problems(value: object, where: str) -> Iterator[Problem]:
    if isinstance(value, str):
        return
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        yield Problem("toml-invalid", where, f"{value!r}", "a name, or a table with path", _SEE)
        return
    for key in sorted(value.keys() - _ROLE):
        yield Problem("toml-invalid", where, f"unknown key {key!r}", f"one of {', '.join(sorted(_ROLE))}")
    rows = value.get("rows", "same")
    if rows not in get_args(Rows):
        yield Problem("toml-invalid", where, f"rows = {rows!r}", " or ".join(get_args(Rows)))
    heads = value.get("heads")
    if (rows == "rotary") != isinstance(heads, str):
        yield Problem("toml-invalid", where, f"rows = {rows!r} with heads = {heads!r}", "heads with rotary alone")
    elif heads is not None:
        yield from _expression_problems(heads, where)


def _expression_problems(expression: str, where: str) -> Iterator[Problem]:
    try:
        parse(expression)
    except ValueError as error:
        yield Problem("toml-invalid", where, str(error))
