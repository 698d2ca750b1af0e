"""A product of two thin factors in an injection file: what its manifest says of it, checked against its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose
from typing import Any

from adaptrix.adapter import Target
from adaptrix.delta import LowRank
from adaptrix.errors import Problem
from adaptrix.formats.manifest import Entry, MalformedError, a_number, is_whole
from adaptrix.tensor import FLOATS, Tensor

#: a tensor's name -> the field it is
NAMES = {"lora_A": "A", "lora_B": "B", "lora_B.bias": "bias", "magnitude": "magnitude"}


def entry(delta: LowRank, target: Target) -> dict[str, Any]:
    """The entry of the manifest; only what differs from a plain LoRA is spelled out."""
    found: dict[str, Any] = {"rank": delta.rank, "alpha": delta.alpha, "scale": delta.scale}
    special: Mapping[str, Any] = {
        "rslora": delta.rslora,
        "embedding": delta.embedding,
        "experts": delta.experts,
        "transposed": delta.transposed,
        "slots": None if target.slot is None else [target.slot, target.slots],
    }
    return found | {name: value for name, value in special.items() if value}


def read(entry: Entry, tensors: dict[str, Tensor], problems: list[Problem]) -> LowRank | None:
    """The delta of an entry, its tensors taken out of ``tensors``; None where something is wrong, which is added.

    Raises :class:`MalformedError` for an entry that is none.
    """
    where = entry.where
    found = {field: tensors.pop(f"{where}.{name}", None) for name, field in NAMES.items()}
    A, B = found["A"], found["B"]
    if A is None or B is None:
        problems.append(Problem("adapter-incomplete", where, "lora_A or lora_B is missing", "both"))
        return None
    if found_wrong := _factor_problems([t for t in found.values() if t is not None], A, B, where):
        problems += found_wrong
        return None
    delta = replace(_built(A, B, entry.values, entry.site), bias=found["bias"], magnitude=found["magnitude"])
    found_wrong = _delta_problems(delta, entry.values, where)
    problems += found_wrong
    return None if found_wrong else delta


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
    if odd := [tensor.dtype for tensor in tensors if tensor.dtype not in FLOATS]:
        return [Problem("dtype", where, ", ".join(odd), f"one of {', '.join(FLOATS)}")]
    if len(A.shape) != 2 or len(B.shape) != 2 or 0 in (*A.shape, *B.shape) or A.shape[0] != B.shape[1]:
        return [Problem("shape", where, f"A {list(A.shape)}, B {list(B.shape)}", "A [r, in], B [out, r]")]
    return []


def _delta_problems(delta: LowRank, entry: Mapping[str, Any], where: str) -> list[Problem]:
    if delta.A.shape[0] % (delta.experts or 1) or delta.rank != entry.get("rank"):
        rank = repr(entry.get("rank"))[:80]
        return [Problem("rank", where, f"A has {delta.A.shape[0]} rows", f"rank {rank} as the manifest says")]
    scale = a_number(entry.get("scale"), f"{where} scale")
    if not isclose(scale, delta.scale, rel_tol=1e-9):
        return [Problem("injection-invalid", where, f"scale {scale!r}", f"{delta.scale} from alpha and rank")]
    return []
