"""A LoRA in another parametrisation in an injection file: the tensors of its checkpoint, and a scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Target
from adaptrix.delta import PARAMETRISATIONS, Delta, Parametrised, part_problems
from adaptrix.errors import Problem
from adaptrix.formats.manifest import Entry, MalformedError, a_number, a_text, an_object, is_whole
from adaptrix.tensor import Tensor

#: the name of every tensor that one may have
NAMES = frozenset(name for made in PARAMETRISATIONS.values() for name in made.names)


def entry(delta: Parametrised, _target: Target) -> dict[str, Any]:
    """The entry of the manifest: the rank of the LoRA that it is, for readers, its scale and its settings."""
    found: dict[str, Any] = {"rank": delta.rank, "scale": delta.scale}
    return found | ({"settings": dict(delta.settings)} if delta.settings else {})


def read(entry: Entry, tensors: dict[str, Tensor], problems: list[Problem]) -> Parametrised | None:
    """The delta of an entry, its tensors taken out of ``tensors``; None where something is wrong, which is added.

    Raises :class:`MalformedError` for an entry that is none.
    """
    kind = a_text(entry.values.get("kind"), f"{entry.where} kind")
    named = ((name, tensors.pop(f"{entry.where}.{name}", None)) for name in PARAMETRISATIONS[kind].names)
    parts = MappingProxyType({name: tensor for name, tensor in named if tensor is not None})
    settings = _settings(kind, entry)
    wrong = list(part_problems(kind, parts, settings, entry.where))
    problems += wrong
    if wrong:
        return None
    delta = Parametrised(kind, parts, a_number(entry.values.get("scale"), f"{entry.where} scale"), settings)
    if delta.rank == entry.values.get("rank"):
        return delta
    found = f"its tensors make a LoRA of rank {delta.rank}"
    problems.append(
        Problem("rank", entry.where, found, f"rank {entry.values.get('rank')!r} as the manifest says"[:200])
    )
    return None


def _settings(kind: str, entry: Entry) -> Mapping[str, int]:
    """The settings of an entry, which are those of its kind, each within its limit."""
    limits = PARAMETRISATIONS[kind].settings or {}
    found = an_object(entry.values.get("settings", {}), f"{entry.where} settings")
    fits = found.keys() == limits.keys() and all(
        is_whole(found[name]) and found[name] <= limits[name] for name in limits
    )
    if not fits or any(found[name] == 0 for name in limits if name != "seed"):
        raise MalformedError(f"{entry.where} settings are {found!r}"[:200])
    return MappingProxyType(found)


def share(found: dict[str, tuple[Target, Delta]], shared: Mapping[str, Tensor]) -> Iterator[Problem]:
    """Gives the deltas of kinds that share tensors those of the file, and yields a problem where these do not fit."""
    for site, (target, delta) in found.items():
        if isinstance(delta, Parametrised) and PARAMETRISATIONS[delta.kind].shared:
            wrong = list(part_problems(delta.kind, {**delta.parts, **shared}, delta.settings, site))
            yield from wrong
            found[site] = (target, delta if wrong else replace(delta, shared=shared))
