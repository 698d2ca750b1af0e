"""The reader of spectral deltas in injection files: every value and every size is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from adaptrix.adapter import Target
from adaptrix.delta import Basis, Spectral
from adaptrix.errors import Problem
from adaptrix.formats.manifest import Entry, MalformedError, a_list, a_size, a_text, an_object
from adaptrix.tensor import FLOATS, Tensor

#: a tensor's name -> the field of the delta
NAMES = {"spectral_z": "z", "spectral_S": "S", "spectral_U": "U", "spectral_Vt": "Vt"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def entry(delta: Spectral, _target: Target) -> dict[str, Any]:
    """The entry of the manifest: above all whose singular values they are."""
    return {
        "rank": delta.rank,
        "scale": delta.scale,
        "shape": list(delta.shape),
        "basis": asdict(delta.basis),
        "vectors": delta.resolved,
    }


def read(entry: Entry, tensors: dict[str, Tensor], problems: list[Problem]) -> Spectral | None:
    """The delta of an entry, its tensors taken out of ``tensors``; None where something is wrong, which is added.

    - ``target``: the module of the delta.
    - ``entry``: of the manifest.
    - ``tensors``: by name; those of the delta are removed.
    - ``where``: the site, which their names begin with.
    - ``problems``: what is wrong is added.

    Raises :class:`MalformedError` for a value of the entry that is not of its type.
    """
    where = entry.where
    found = {field: tensors.pop(f"{where}.{name}", None) for name, field in NAMES.items()}
    shape, basis = _shape(entry.values, where), _basis(entry.values, where)
    z, S = found["z"], found["S"]
    if z is None or S is None:
        problems.append(Problem("adapter-incomplete", where, "spectral_z or spectral_S is missing", "both"))
        return None
    delta = Spectral(z, S, basis, shape, found["U"], found["Vt"])
    wrong = list(_tensor_problems(delta, where))
    wrong = wrong or [*_entry_problems(delta, entry.target, entry.values, where), *_value_problems(delta, where)]
    problems += wrong
    return None if wrong else delta


def _shape(entry: Mapping[str, Any], where: str) -> tuple[int, int]:
    shape = a_list(entry.get("shape"), f"{where} shape")
    if len(shape) != 2 or 0 in shape:
        raise MalformedError(f"{where} shape is {shape!r}"[:200])
    return a_size(shape[0], f"{where} shape"), a_size(shape[1], f"{where} shape")


def _basis(entry: Mapping[str, Any], where: str) -> Basis:
    values = an_object(entry.get("basis"), f"{where} basis")
    basis = Basis(
        **{name: a_text(values.get(name), f"{where} basis {name}") for name in ("weight", "dtype", "backend")}
    )
    if not _DIGEST.fullmatch(basis.weight):
        raise MalformedError(f"{where} basis weight is {basis.weight!r}, no SHA-256"[:200])
    if basis.dtype not in FLOATS:
        raise MalformedError(f"{where} basis dtype is {basis.dtype!r}"[:200])
    return basis


def _entry_problems(delta: Spectral, target: Target, entry: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """A problem for every contradiction between the manifest and the tensors."""
    if target.slot is not None:
        yield Problem("injection-invalid", where, f"a spectral delta on {target}", "one on the whole weight")
    if entry.get("rank") != delta.rank or entry.get("scale") != 1:
        stated = f"rank {entry.get('rank')!r}, scale {entry.get('scale')!r}"[:160]
        yield Problem("rank", where, f"{stated} in the manifest", f"rank {delta.rank} as z has, and scale 1")
    held = [tensor is not None for tensor in (delta.U, delta.Vt)]
    if entry.get("vectors") is not held[0] or held[0] is not held[1]:
        said = " and ".join(name for name, there in zip(("U", "Vᵀ"), held, strict=True) if there) or "neither U nor Vᵀ"
        expected = "both, as the manifest says" if entry.get("vectors") is True else "neither, as the manifest says"
        yield Problem("adapter-incomplete", where, f"it has {said}", expected, "The file is damaged: convert again.")


def _tensor_problems(delta: Spectral, where: str) -> Iterator[Problem]:
    """A problem for every tensor of a wrong dtype, or of a shape that is not that of the weight."""
    out, inp = delta.shape
    k = min(out, inp)
    shapes = {"spectral_z": (k,), "spectral_S": (k,), "spectral_U": (out, k), "spectral_Vt": (k, inp)}
    for name, tensor in delta.tensors().items():
        if tensor.shape != shapes[name]:
            expected = f"{list(shapes[name])} for a weight of {out} × {inp}"
            yield Problem("shape", f"{where}.{name}", f"shape {list(tensor.shape)}", expected)
        dtypes = FLOATS if name == "spectral_z" else ("F32",)
        if tensor.dtype not in dtypes:
            yield Problem("dtype", f"{where}.{name}", tensor.dtype, f"one of {', '.join(dtypes)}")


def _value_problems(delta: Spectral, where: str) -> Iterator[Problem]:
    """A problem where S is negative or unordered; NaN and Inf are found by the check of all tensors."""
    S = delta.S.float32()
    with np.errstate(invalid="ignore"):  # Inf - Inf
        if (S < 0).any() or (np.diff(S) > 0).any():
            yield Problem(
                "injection-invalid", f"{where}.spectral_S", "negative or unordered numbers", "from the largest on, to 0"
            )
