"""Values of an injection file's manifest, each checked to be of its type.

A manifest is untrusted: :class:`MalformedError` names the value that is not as the format says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptrix.adapter import Target

LARGEST = 1 << 40  # of a dimension


class MalformedError(Exception):
    """A value of the manifest that is not as the format says; its text names it."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A manifest's entry for one delta: its ``site`` as text, the weight that it changes, and the ``values``.

    ``where`` begins the names of its tensors: the site, after ``plan.`` where the plan replaces one by it.
    """

    site: str
    where: str
    target: Target
    values: Mapping[str, Any]


def table(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key of another."""
    return an_object(owner.get(key), key)


def an_object(value: Any, what: str) -> dict[str, Any]:
    """A JSON object; ``what`` names it in messages."""
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not an object")
    return value


def a_list(value: Any, what: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise MalformedError(f"{what} is not a list")
    return value


def a_layer(value: Any) -> int:
    """The number of a layer."""
    if not is_whole(value) or value > 999_999:
        raise MalformedError(f"layer {value!r}"[:200])
    return int(value)


def an_index(text: str) -> int:
    """The number of a layer that is a key, and so text."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise MalformedError(f"layer {text!r}"[:200])
    return int(text)


def a_number(value: Any, what: str) -> float:
    """A finite number of a sensible size."""
    if type(value) not in (int, float) or not abs(value) < 1e30:  # neither NaN nor an integer of 400 digits
        raise MalformedError(f"{what} is {value!r}"[:200])
    return float(value)


def is_whole(value: Any) -> bool:
    """True for a whole number of at least 0."""
    return type(value) is int and value >= 0


def a_size(value: Any, what: str) -> int:
    """A whole number from 0 to ``LARGEST``."""
    if not is_whole(value) or value > LARGEST:
        raise MalformedError(f"{what} is {value!r}"[:200])
    return int(value)


def optional_text(value: Any, what: str) -> str | None:
    """Text, or nothing."""
    return None if value is None else a_text(value, what)


def a_text(value: Any, what: str) -> str:
    """Printable text of a sensible length."""
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise MalformedError(f"{what} is {repr(value)[:80]}")
    return value
