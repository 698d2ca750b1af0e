"""The deltas of an injection file: the manifest's entry of each, checked against its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from typing import Any

from adaptrix.adapter import Target
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem
from adaptrix.formats import injection_spectral, peft_keys
from adaptrix.formats.manifest import MalformedError, a_number, a_text, an_object, is_whole
from adaptrix.tensor import FLOATS, Tensor

_NAMES = {"lora_A": "A", "lora_B": "B", "lora_B.bias": "bias", "magnitude": "magnitude"}


def read_deltas(
    entries: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str, problems: list[Problem]
) -> dict[str, tuple[Target, Delta]]:
    """The valid deltas of a table of the manifest, by site.

    Their tensors, named with ``prefix``, are removed from ``tensors``; what is wrong is added to ``problems``.
    """
    found: dict[str, tuple[Target, Delta]] = {}
    for site, value in entries.items():
        entry, where = an_object(value, f"{prefix}{site}"), f"{prefix}{site}"
        target = _target(site, entry)
        delta: Delta | None = None
        if entry.get("kind") in ("lora", "dora"):
            delta = _low_rank(site, entry, tensors, where, problems)
        elif entry.get("kind") == "spectral":
            delta = injection_spectral.read(target, entry, tensors, where, problems)
        else:
            problems.append(_unknown_kind(entry.get("kind"), tensors, where))
        if delta is not None:
            found[site] = (target, delta)
    return found


def _unknown_kind(kind: object, tensors: dict[str, Tensor], where: str) -> Problem:
    """The problem of an unknown kind; its tensors are removed, so that they are not reported once more."""
    for name in (*_NAMES, *injection_spectral.NAMES):
        tensors.pop(f"{where}.{name}", None)
    remedy = "Update adaptrix: it may have been written by a newer one."
    return Problem("kind", where, f"a delta of kind {kind!r}"[:200], "lora, dora or spectral", remedy)


def _low_rank(
    site: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], where: str, problems: list[Problem]
) -> LowRank | None:
    found = {field: tensors.pop(f"{where}.{name}", None) for name, field in _NAMES.items()}
    A, B = found["A"], found["B"]
    if A is None or B is None:
        problems.append(Problem("pair", where, "lora_A or lora_B is missing", "both"))
        return None
    if found_wrong := _factor_problems([t for t in found.values() if t is not None], A, B, where):
        problems += found_wrong
        return None
    delta = replace(_built(A, B, entry, site), bias=found["bias"], magnitude=found["magnitude"])
    found_wrong = _delta_problems(delta, entry, where)
    problems += found_wrong
    return None if found_wrong else delta


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


def _built(A: Tensor, B: Tensor, entry: Mapping[str, Any], site: str) -> LowRank:
    experts = entry.get("experts")
    if experts is not None and not (is_whole(experts) and 0 < experts <= A.shape[0]):
        raise MalformedError(f"{site}: experts {experts!r}"[:200])
    return LowRank(
        A,
        B,
        a_number(entry.get("alpha"), f"{site} alpha"),
        rslora=entry.get("rslora") is True,
        embedding=entry.get("embedding") is True,
        experts=experts,
        transposed=entry.get("transposed") is True,
    )


def _factor_problems(tensors: list[Tensor], A: Tensor, B: Tensor, where: str) -> list[Problem]:
    if wrong := [tensor.dtype for tensor in tensors if tensor.dtype not in FLOATS]:
        return [Problem("dtype", where, ", ".join(wrong), f"one of {', '.join(FLOATS)}")]
    if len(A.shape) != 2 or len(B.shape) != 2 or 0 in (*A.shape, *B.shape) or A.shape[0] != B.shape[1]:
        return [Problem("shape", where, f"A {list(A.shape)}, B {list(B.shape)}", "A [r, in], B [out, r]")]
    return []


def _delta_problems(delta: LowRank, entry: Mapping[str, Any], where: str) -> list[Problem]:
    if delta.A.shape[0] % (delta.experts or 1) or delta.rank != entry.get("rank"):
        rank = repr(entry.get("rank"))[:80]
        return [Problem("rank", where, f"A has {delta.A.shape[0]} rows", f"rank {rank} as the manifest says")]
    scale = a_number(entry.get("scale"), f"{where} scale")
    if not isclose(scale, delta.scale, rel_tol=1e-9):
        return [Problem("scale", where, f"scale {scale!r}", f"{delta.scale} from alpha and rank")]
    return []
