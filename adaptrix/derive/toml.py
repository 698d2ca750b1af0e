"""Architectures printed as the TOML that ``adaptrix.architecture.registry`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import Alternative, Rule


def to_toml(architecture: Architecture) -> str:
    """The TOML of an architecture; what ``derive`` was not sure of follows its role as ``# unverified``."""
    lines = [
        f"family = {_text(architecture.family)}",
        f"model_types = {_list(map(_text, architecture.model_types))}",
        f"prefixes = {_list(map(_text, architecture.prefixes))}",
        "",
        "[dims]",
        *(f"{name} = {_rule(rule)}" for name, rule in architecture.dims.items()),
    ]
    for role in architecture.roles.values():
        lines += ["", *_role(role)]
    return "\n".join(lines) + "\n"


def _role(role: Role) -> Iterator[str]:
    yield f"[roles.{role.name}]"
    if role.note:
        yield f"# unverified: {' '.join(role.note.split())}"
    yield f"path = {_strings(role.paths)}"
    if role.orientation != "linear":
        yield f"orientation = {_text(role.orientation)}"
    settings = {"in": role.inp, "out": role.out, "experts": role.experts}
    settings |= {"depth": role.depth} if role.layered and role.depth != "layers" else {}
    settings |= {"layout": role.layout, "groups": role.groups} if role.layout != "contiguous" else {}
    yield from (f"{key} = {_text(value)}" for key, value in settings.items() if value is not None)
    if role.optional:
        yield "optional = true"
    if role.parts:
        yield f"parts = {_table({part: _text(size) for part, size in role.parts.items()})}"
    if role.part_paths:
        yield f"part_paths = {_table({part: _strings(paths) for part, paths in role.part_paths.items()})}"


def _rule(rule: Rule) -> str:
    options = [_alternative(option) for option in rule]
    return options[0] if len(options) == 1 else _list(options)


def _alternative(option: Alternative) -> str:
    value = str(option.value) if isinstance(option.value, int) else _text(option.value)
    flags = {"when": option.when, "unless": option.unless}
    bound = {key: _text(flag) for key, flag in flags.items() if flag is not None}
    return _table({"value": value, **bound}) if bound else value


def _strings(values: tuple[str, ...]) -> str:
    return _text(values[0]) if len(values) == 1 else _list(map(_text, values))


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


def _table(values: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {value}" for key, value in values.items()) + " }"


def _text(value: str) -> str:
    """A TOML string: JSON's escapes are all TOML's too."""
    return json.dumps(value)
