"""Mappings from untrusted YAML files: plain values alone, bounded in size and in what they stand for.

Aliases and merges let a few lines stand for billions of values, and YAML's numbers have no limit either; showing or
comparing such a value would never end.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adaptrix.errors import refuse

#: no config is near this
MAX_BYTES = 1 << 20
_MAX_VALUES = 1 << 20  # counted as often as aliases repeat them
_MAX_NUMBER = 40  # characters: those of base 60 take time that grows with their square
_ALONE = re.compile("[\ud800-\udfff]")  # halves of characters, which cannot be written again


def read_mapping(path: Path, expected: str, code: str = "yaml-invalid") -> dict[Any, Any]:
    """The mapping in a YAML file; a tag that would make an object, a merge, or a key twice is refused.

    ``expected``: what the file should hold, ``code``: of problems, for messages. Raises :class:`RefusedError`.
    """
    data = _bytes(path, expected, code)
    try:
        value = yaml.load(data, _Plain)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refuse(code, path, f"it is not plain YAML: {_said(error)}", expected) from None
    if value is None:
        raise refuse(code, path, "there is nothing in it", expected)
    if not isinstance(value, dict):
        raise refuse(code, path, f"it holds a {type(value).__name__}", expected)
    if found := _excess(value):
        raise refuse(code, path, found, expected)
    return value


def _said(error: Exception) -> str:
    """An error's first line, and the line of the file that it is about, where PyYAML says which."""
    said, mark = str(error).partition("\n")[0], getattr(error, "problem_mark", None)
    return said if mark is None else f"{said}, at line {mark.line + 1}"


def _bytes(path: Path, expected: str, code: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise refuse(code, path, "it is not a regular file", expected)
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse("file-unreadable", path, f"it cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise refuse(code, path, f"it has more than {MAX_BYTES} bytes", expected)
    return data


def _excess(value: object) -> str | None:
    """The reason why a value cannot be used (half a character, too many values); None where there is none."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting += (*one.keys(), *one.values())
        elif isinstance(one, (list, tuple, set)):
            waiting += one
        elif isinstance(one, str) and _ALONE.search(one):
            return "it holds half a Unicode character"
        if count + len(waiting) > _MAX_VALUES:
            return f"it stands for more than {_MAX_VALUES} values"
    return None


class _Plain(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types of its own
    """Values and no objects, no key that overrides another, and no number that is too long to be one."""

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError(f"a merge (<<){node.start_mark}")

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.YAMLError(f"a key is there twice in what begins at line {node.start_mark.line + 1}")
        return mapping


def _scalar(kind: str, construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A scalar's constructor whose every failure names the line: a tag may be put before any text.

    PyYAML's own fail by whatever their code runs into: ``!!bool maybe`` is a ``KeyError``.
    """

    def constructed(loader: Any, node: Any) -> Any:
        text = str(loader.construct_scalar(node))
        if kind in ("int", "float") and len(text) > _MAX_NUMBER:
            raise yaml.YAMLError(f"a number of {len(text)} characters{node.start_mark}")
        try:
            return construct(loader, node)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise yaml.YAMLError(f"{text!r:.60} is no {kind}{why}, at line {node.start_mark.line + 1}") from None

    return constructed


for _kind in ("bool", "int", "float", "timestamp"):
    _tag = f"tag:yaml.org,2002:{_kind}"
    _Plain.add_constructor(_tag, _scalar(_kind, yaml.SafeLoader.yaml_constructors[_tag]))
for _kind in ("binary", "set", "omap", "pairs"):  # no values of a config
    _Plain.add_constructor(f"tag:yaml.org,2002:{_kind}", yaml.SafeLoader.construct_undefined)
