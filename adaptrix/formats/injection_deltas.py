"""The deltas of an injection file: what its manifest says of each, checked against its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptrix.adapter import Target
from adaptrix.delta import Delta
from adaptrix.errors import Problem
from adaptrix.formats import injection_kinds, peft_keys
from adaptrix.formats.manifest import Entry, MalformedError, a_text, an_object, is_whole
from adaptrix.tensor import Tensor


def read_deltas(
    entries: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str, problems: list[Problem]
) -> dict[str, tuple[Target, Delta]]:
    """The valid deltas of a table of the manifest, by site.

    Their tensors, named with ``prefix``, are removed from ``tensors``; what is wrong is added to ``problems``.
    """
    found: dict[str, tuple[Target, Delta]] = {}
    for site, found_entry in entries.items():
        values, where = an_object(found_entry, f"{prefix}{site}"), f"{prefix}{site}"
        target = _target(site, values)
        delta = injection_kinds.read(Entry(site, where, target, values), tensors, problems)
        if delta is not None:
            found[site] = (target, delta)
    return found


def _target(site: str, entry: Mapping[str, Any]) -> Target:
    path = a_text(entry.get("module"), f"{site} module")
    if peft_keys.parse(path) is None:
        raise MalformedError(f"{site}: module {path!r}")
    slots = entry.get("slots")
    if slots is None:
        return Target(path)
    if not (isinstance(slots, list) and len(slots) == 2 and all(map(is_whole, slots)) and slots[0] < slots[1] <= 64):
        raise MalformedError(f"{site}: slots {slots!r}"[:200])
    return Target(path, *slots)
