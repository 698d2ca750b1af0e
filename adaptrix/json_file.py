"""JSON objects from untrusted files: bounded in size and in depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptrix.errors import RefusedError, refuse
from adaptrix.source_file import source_file
from adaptrix.wording import amount

#: no config is near this: the largest published are some hundred kB
MAX_BYTES = 10_000_000
MAX_DEPTH = 64


def read_object(path: Path, where: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object in ``path``; ``where`` is what messages call it.

    Raises ``RefusedError``: ``file-unreadable`` (no file, no permission, a pipe), ``file-too-large``
    or ``json-invalid`` (not UTF-8, not JSON, too deep, not an object).
    """
    value = _parse(_bytes(path, where, limit), where)
    if not isinstance(value, dict):
        raise refuse("json-invalid", where, f"it holds {_kind(value)}", "a JSON object")
    if _deeper_than(value, MAX_DEPTH):
        raise _too_deep(where)
    return value


def too_large(where: str, size: int, limit: int = MAX_BYTES) -> RefusedError:
    """The refusal of a config of ``size`` bytes, for callers that know it before they read."""
    return refuse(
        "file-too-large",
        where,
        f"it has {amount(size)}",
        f"a config of at most {amount(limit)}",
        "This is no config but another file of that name: restore the config.",
    )


def _bytes(path: Path, where: str, limit: int) -> bytes:
    try:
        file = source_file(path)
        if not file.regular:
            raise refuse("file-unreadable", where, "it is not a regular file")
        if file.size > limit:
            raise too_large(where, file.size, limit)
        return b"".join(file.chunks(0, file.size))
    except OSError as error:
        raise refuse("file-unreadable", where, f"it cannot be read: {error.strerror or error}") from error


def _parse(data: bytes, where: str) -> object:
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could not be written again
        return value
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of 5,000 digits
        found = f"it is not JSON: {error}" if data else "the file is empty"
        raise refuse("json-invalid", where, found, "a JSON object", "Fetch or copy it again.") from error


def _too_deep(where: str) -> RefusedError:
    found = f"it is nested more than {MAX_DEPTH} deep"
    return refuse("json-invalid", where, found, "a config, as models and adapters have", "Fetch or copy it again.")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _deeper_than(value: object, depth: int) -> bool:
    level: list[object] = [value]
    for _ in range(depth):
        level = [child for parent in level for child in _children(parent)]
    return bool(level)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
