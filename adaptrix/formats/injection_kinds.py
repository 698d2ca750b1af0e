"""The kinds of delta in an injection file: the names of their tensors, and how each is described and read.

An entry of the manifest holds what the tensors do not say of a delta, its kind and its module among it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Target
from adaptrix.architecture import Site
from adaptrix.delta import PARAMETRISATIONS, Delta
from adaptrix.delta.kinds import one_of, row
from adaptrix.errors import Problem
from adaptrix.formats import injection_low_rank, injection_parametrised, injection_scale, injection_spectral
from adaptrix.formats.manifest import Entry
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True)
class InjectionKind:
    """One kind: the names of its tensors, its own part of an entry, and the way back.

    ``read`` takes the delta's tensors out of those of the file, and gives None where something is wrong, which it adds
    to the problems.
    """

    names: Collection[str]
    entry: Callable[[Any, Target], dict[str, Any]]
    read: Callable[[Entry, dict[str, Tensor], list[Problem]], Delta | None]


_LOW_RANK = InjectionKind(injection_low_rank.NAMES, injection_low_rank.entry, injection_low_rank.read)
_SPECTRAL = InjectionKind(injection_spectral.NAMES, injection_spectral.entry, injection_spectral.read)
_PARAMETRISED = InjectionKind(injection_parametrised.NAMES, injection_parametrised.entry, injection_parametrised.read)

#: a row for every kind of delta
KINDS: Mapping[str, InjectionKind] = MappingProxyType(
    {
        "lora": _LOW_RANK,
        "dora": _LOW_RANK,
        "spectral": _SPECTRAL,
        **dict.fromkeys(PARAMETRISATIONS, _PARAMETRISED),
        "scale": InjectionKind(injection_scale.NAMES, injection_scale.entry, injection_scale.read),
    }
)


def entry(delta: Delta, target: Target, site: Site) -> dict[str, Any]:
    """The manifest's entry for a delta. Raises :class:`RefusedError` for a kind that no injection file holds."""
    own = row(KINDS, delta, site, "an injection file").entry(delta, target)
    return {"kind": delta.kind, "module": target.path} | own


def read(entry: Entry, tensors: dict[str, Tensor], problems: list[Problem]) -> Delta | None:
    """The delta of an entry of any kind; None where something is wrong, which is added to the problems."""
    kind = entry.values.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind].read(entry, tensors, problems)
    for name in {name for known in KINDS.values() for name in known.names}:  # they are no other delta's
        tensors.pop(f"{entry.where}.{name}", None)
    remedy = "Update adaptrix: it may have been written by a newer one."
    problems.append(Problem("injection-invalid", entry.where, f"a delta of kind {kind!r}"[:200], one_of(KINDS), remedy))
    return None
