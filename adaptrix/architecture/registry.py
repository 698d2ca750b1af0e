"""The reader of architecture TOML files: strict, with every mistake reported at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from adaptrix.architecture.dims import Alternative, Rule, names_in
from adaptrix.architecture.family import Architecture, Layout, Orientation, Role
from adaptrix.errors import Problem, RefusedError

_TOP = {"family", "model_types", "prefixes", "dims", "roles"}
_ROLE = {"path", "in", "out", "orientation", "parts", "layout", "groups", "experts", "part_paths", "depth", "optional"}
#: the largest that ships has 6 kB; a key of many dots takes time that grows with their square
_MAX_BYTES, _MAX_DOTS = 1 << 18, 500
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def builtin_folder() -> Path:
    """The folder of the TOML files that ship with Adaptrix.

    An installed wheel carries it as ``adaptrix/_registry``; a checkout has it beside the package.
    """
    package = Path(__file__).parents[1]
    packed = package / "_registry"
    return packed if packed.is_dir() else package.parent / "registry"


def read_architectures(folder: Path, origin: str = "adaptrix") -> Iterator[Architecture]:
    """The architectures of every ``*.toml`` in a folder, by file name."""
    for file in sorted(folder.glob("*.toml")):
        yield read_architecture(file, origin)


def read_architecture(file: Path, origin: str = "") -> Architecture:
    """The architecture of one TOML file. Raises :class:`RefusedError` with every mistake in it."""
    with open(file, "rb") as opened:
        content = opened.read(_MAX_BYTES + 1)
    try:
        if len(content) > _MAX_BYTES or max(line.count(b".") for line in content.split(b"\n")) > _MAX_DOTS:
            raise ValueError("it is larger or deeper than any architecture is")
        table = tomllib.loads(content.decode("utf-8").replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:  # of syntax, of text, of a number of 5,000 digits
        raise RefusedError(Problem("toml-invalid", str(file), str(error), "a TOML file")) from None
    return parse_architecture(table, where=str(file), origin=origin or str(file))


def parse_architecture(table: Mapping[str, Any], *, where: str, origin: str) -> Architecture:
    """An architecture from the table of a TOML file. Raises :class:`RefusedError`."""
    problems = list(_shape_problems(table, where))
    if problems:
        raise RefusedError(problems)
    architecture = Architecture(
        family=table["family"],
        model_types=tuple(table["model_types"]),
        dims=MappingProxyType({name: _rule(value) for name, value in table["dims"].items()}),
        roles=MappingProxyType({name: _role(name, value) for name, value in table["roles"].items()}),
        prefixes=tuple(table.get("prefixes", [""])),
        origin=origin,
    )
    problems = list(_meaning_problems(architecture, where))
    if problems:
        raise RefusedError(problems)
    return architecture


def _rule(value: Any) -> Rule:
    options = value if isinstance(value, list) else [value]
    return tuple(Alternative(**o) if isinstance(o, dict) else Alternative(o) for o in options)


def _role(name: str, table: Mapping[str, Any]) -> Role:
    parts = dict(table.get("parts", {}))
    return Role(
        name=name,
        paths=_strings(table["path"]),
        inp=table.get("in"),
        out=table.get("out") or (" + ".join(parts.values()) or None),
        orientation=table.get("orientation", "linear"),
        parts=MappingProxyType(parts),
        layout=table.get("layout", "contiguous"),
        groups=table.get("groups"),
        experts=table.get("experts"),
        part_paths=MappingProxyType({part: _strings(p) for part, p in table.get("part_paths", {}).items()}),
        depth=table.get("depth", "layers"),
        optional=table.get("optional", False),
    )


def _strings(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _shape_problems(table: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """A problem for every key that is missing, unknown or of the wrong type."""
    yield from _unknown_keys(table, _TOP, where)
    checks: dict[str, Callable[[Any], bool]] = {
        "family": lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)),
        "model_types": _is_strings,
        "prefixes": _is_strings,
        "dims": lambda v: isinstance(v, dict) and all(map(_is_rule, v.values())),
        "roles": lambda v: isinstance(v, dict) and bool(v),
    }
    for key, valid in checks.items():
        if key not in table and key != "prefixes":
            yield Problem("toml-invalid", where, f"no key {key!r}", remedy="See registry/README.md.")
        elif key in table and not valid(table[key]):
            yield Problem("toml-invalid", f"{where} {key}", f"{table[key]!r} is not of the form that the schema has")
    roles = table.get("roles")
    for name, role in (roles if isinstance(roles, dict) else {}).items():
        yield from _role_problems(role, f"{where} [roles.{name}]")


def _role_problems(role: Any, where: str) -> Iterator[Problem]:
    if not isinstance(role, dict):
        yield Problem("toml-invalid", where, f"{role!r} is not a table")
        return
    yield from _unknown_keys(role, _ROLE, where)
    if not _is_strings(role.get("path")) and not isinstance(role.get("path"), str):
        yield Problem("toml-invalid", where, "no path", "a module path, or a list of them, today's first")
    for key, allowed in (("orientation", get_args(Orientation)), ("layout", get_args(Layout))):
        if role.get(key, allowed[0]) not in allowed:
            yield Problem("toml-invalid", where, f"{key} = {role[key]!r}", " or ".join(allowed))
    if not isinstance(role.get("optional", False), bool):
        yield Problem("toml-invalid", where, f"optional = {role['optional']!r}", "true or false")
    for key in ("in", "out", "groups", "experts", "depth"):
        if not isinstance(role.get(key, ""), str):
            yield Problem("toml-invalid", where, f"{key} = {role[key]!r}", "an expression over the dims, as text")
    for key, valid in (("parts", _is_string), ("part_paths", lambda v: _is_string(v) or _is_strings(v))):
        if not isinstance(role.get(key, {}), dict) or not all(map(valid, role.get(key, {}).values())):
            yield Problem("toml-invalid", where, f"{key} = {role[key]!r}", "a table from part to text")


def _meaning_problems(architecture: Architecture, where: str) -> Iterator[Problem]:
    """A problem for all that is well formed and makes no sense: unknown dims and parts, an ambiguous path."""
    seen: dict[str, str] = {}
    for role in architecture.roles.values():
        place = f"{where} [roles.{role.name}]"
        expressions = [role.inp, role.out, role.groups, role.experts, *role.parts.values()]
        if role.layered:
            expressions.append(role.depth)
        for expression in filter(None, expressions):
            yield from _expression_problems(expression, architecture.dims.keys(), place)
        for part in role.part_paths.keys() - role.parts.keys():
            yield Problem("toml-invalid", place, f"part_paths names {part!r}", f"one of {sorted(role.parts)}")
        if role.layout == "grouped" and not role.groups:
            yield Problem("toml-invalid", place, "layout = 'grouped' without groups", 'such as groups = "kv_heads"')
        for path in (*role.paths, *(p for paths in role.part_paths.values() for p in paths)):
            owner = seen.setdefault(path, role.name)
            if owner != role.name:
                yield Problem("toml-invalid", place, f"path {path!r} is also that of role {owner!r}")


def _expression_problems(expression: str, dims: Iterable[str], where: str) -> Iterator[Problem]:
    try:
        unknown = sorted(names_in(expression) - set(dims))
    except ValueError as error:
        yield Problem("toml-invalid", where, str(error))
        return
    for name in unknown:
        yield Problem("toml-invalid", where, f"{expression!r} mentions {name!r}", "a name from [dims]")


def _unknown_keys(table: Mapping[str, Any], known: set[str], where: str) -> Iterator[Problem]:
    for key in sorted(table.keys() - known):
        yield Problem("toml-invalid", where, f"unknown key {key!r}", f"one of {', '.join(sorted(known))}")


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_string, value))


def _is_rule(value: Any) -> bool:
    options = value if isinstance(value, list) else [value]
    return bool(options) and all(map(_is_alternative, options))


def _is_alternative(value: Any) -> bool:
    if isinstance(value, dict):
        flags = all(_is_string(value.get(key, "")) for key in ("when", "unless"))
        return flags and value.keys() <= {"value", "when", "unless"} and _is_value(value.get("value"))
    return _is_value(value)


def _is_value(value: Any) -> bool:
    return isinstance(value, str) or type(value) is int
