"""JSON Schemas (2020-12) of the shapes, made from their annotations."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from adaptrix.schemas import VERSION
from adaptrix.schemas.shared import ProblemJSON

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


def document_schema(command: str, report: type) -> dict[str, Any]:
    """The schema of what ``adaptrix COMMAND --json`` prints.

    A command that ends without a result prints the failure: the version, the command and the problems alone.
    """
    defs: dict[str, Any] = {}
    own = _object(report, defs)
    header = {"version": {"const": VERSION}, "command": {"const": command}}
    document = _closed({**header, **own["properties"]}, str(report.__doc__))
    return {
        "$schema": _DIALECT,
        "title": f"adaptrix {command} --json",
        "anyOf": [document, failure_schema(command, defs)],
        "$defs": defs,
    }


def failure_schema(command: str | None, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a command's end without a result; None: of a command line that names no command."""
    problems = {"type": "array", "items": _schema(ProblemJSON, defs), "minItems": 1}
    header = {"version": {"const": VERSION}, "command": {"const": command}}
    return _closed({**header, "ok": {"const": False}, "problems": problems}, "A command that gave no result.")


def _closed(properties: dict[str, Any], description: str) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _object(shape: type, defs: dict[str, Any]) -> dict[str, Any]:
    fields = get_type_hints(shape, include_extras=True)
    return _closed({name: _schema(kind, defs) for name, kind in fields.items()}, str(shape.__doc__))


def _schema(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of an annotation; that of a TypedDict is put into ``defs`` and referred to."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return {**_schema(arguments[0], defs), "description": " ".join(arguments[1:])}
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(one, defs) for one in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], defs)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], defs)}
    if is_typeddict(kind):
        if kind.__name__ not in defs:
            defs[kind.__name__] = {}  # before its fields, which may come back to it
            defs[kind.__name__] = _object(kind, defs)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return {} if kind is Any else {"type": _PLAIN[kind]}
