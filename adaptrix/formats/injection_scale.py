"""(IA)³ numbers in an injection file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adaptrix.adapter import Target
from adaptrix.delta import Scale
from adaptrix.errors import Problem
from adaptrix.formats.manifest import Entry
from adaptrix.tensor import FLOATS, Tensor

NAMES = ("ia3_l",)


def entry(delta: Scale, _target: Target) -> dict[str, Any]:
    """The entry of the manifest: which axis the numbers are of."""
    return {"axis": "in" if delta.inputs else "out"}


def read(entry: Entry, tensors: dict[str, Tensor], problems: list[Problem]) -> Scale | None:
    """The delta of an entry, its tensor taken out of ``tensors``; None where something is wrong, which is added."""
    vector, axis = tensors.pop(f"{entry.where}.ia3_l", None), entry.values.get("axis")
    if vector is None or axis not in ("in", "out"):
        found = "ia3_l is missing" if vector is None else f"axis {axis!r}"[:200]
        problems.append(Problem("injection-invalid", entry.where, found, 'ia3_l, and axis "in" or "out"'))
        return None
    wrong = list(vector_problems(vector, entry.where, inputs=axis == "in"))
    problems += wrong
    return None if wrong else Scale(vector, inputs=axis == "in")


def vector_problems(vector: Tensor, where: str, *, inputs: bool) -> Iterator[Problem]:
    """The problems of a tensor that is to be the numbers of an axis."""
    if vector.dtype not in FLOATS:
        yield Problem("dtype", f"{where} ia3_l", vector.dtype, f"one of {', '.join(FLOATS)}")
    if not vector.size or vector.shape != ((1, vector.size) if inputs else (vector.size, 1)):
        yield Problem("shape", f"{where} ia3_l", f"shape {list(vector.shape)}", "[1, in]" if inputs else "[out, 1]")
