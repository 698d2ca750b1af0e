"""Roles, described from a path pattern and the sizes observed for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptrix.architecture import Orientation, Role
from adaptrix.derive.expressions import ExpressionSearch
from adaptrix.derive.stacks import Stacks
from adaptrix.derive.survey import Family, Model

_FUSED = re.compile(r"qkv|query_key_value|c_attn|gate_up", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """All that was observed of a family.

    - ``deep``: the model as given.
    - ``models``: shallower ones, with one number changed in each but the first.
    - ``search``: finds the expression of a size in these models.
    - ``stacks``: the stacks of layers; ``depths``: stack -> the dimension that counts its layers.
    """

    family: Family
    deep: Model
    models: tuple[Model, ...]
    search: ExpressionSearch
    stacks: Stacks
    depths: Mapping[str, str]


def describe(evidence: Evidence, name: str, pattern: str, paths: Sequence[str]) -> Role:
    """The role of the weights at ``paths``, which all have one pattern."""
    weight = evidence.deep.weights[paths[0]]
    orientation, doubts = _orientation(weight.orientation, len(weight.shape))
    sizes: dict[str, str | None] = {"experts": None}
    for axis, meaning in enumerate(_axes(orientation)):
        sizes[meaning], doubt = _size(evidence, paths, axis)
        doubts += [f"{meaning}: {doubt}"] if doubt else []
    if _FUSED.search(pattern.rpartition(".")[2]):
        doubts.append("if this is a fused weight, declare its parts and layout")
    if "{expert}" in pattern:
        doubts.append("one module an expert: how many is not declared")
    stack = evidence.stacks.stack(paths[0]) or ""
    return Role(
        name,
        (pattern,),
        sizes["in"],
        sizes["out"],
        orientation,
        experts=sizes["experts"],
        depth=evidence.depths.get(stack, "layers"),
        optional=bool(stack) and "{expert}" not in pattern and len(paths) < evidence.stacks.counts[stack],
        note="; ".join(doubts),
    )


def _orientation(known: Orientation | None, axes: int) -> tuple[Orientation, list[str]]:
    """The orientation of a weight; where its module does not show it, the usual one, noted as unverified."""
    if known is not None:
        return known, []
    usual: Orientation = "linear" if axes == 2 else "experts"
    return usual, ["orientation: a bare parameter does not show which axis is which"]


def _axes(orientation: Orientation) -> tuple[str, ...]:
    """The meaning of each axis as stored."""
    plane = ("in", "out") if orientation in ("conv1d", "embedding", "experts_transposed") else ("out", "in")
    return ("experts", *plane) if orientation.startswith("experts") else plane


def _size(evidence: Evidence, paths: Sequence[str], axis: int) -> tuple[str | None, str]:
    """The expression of one axis, and what is doubtful about it."""
    here = {evidence.deep.weights[path].shape[axis] for path in paths}
    if len(here) > 1:
        return None, f"differs from layer to layer: {sorted(here)[:8]}"
    sample = next(path for path in paths if path in evidence.models[0].weights)
    target = tuple(model.weights[sample].shape[axis] for model in evidence.models)
    if len(set(target)) == 1:
        return _constant(evidence, sample, target[0])
    found = evidence.search.find(target)
    return (found.expression, found.doubt) if found else (None, f"{here.pop()} here, no simple expression matches")


def _constant(evidence: Evidence, path: str, size: int) -> tuple[str | None, str]:
    """The expression of a size that never changed: free for a classifier's labels, else a number, with its doubt."""
    if evidence.stacks.stack(path) is None and path not in evidence.family.natural:
        return None, ""
    fixed = [name for name, vector in evidence.search.dims.items() if set(vector) == {size}]
    doubt = f"may be {' or '.join(fixed)}, which could not be varied" if fixed else "the same whatever the config says"
    return str(size), doubt
