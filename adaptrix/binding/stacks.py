"""Stacks of layers: the depth of each, and the layers and experts of an adapter that are beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptrix.adapter import Adapter
from adaptrix.architecture import Architecture, Site
from adaptrix.architecture.dims import DEEPEST, Dims
from adaptrix.delta import Delta
from adaptrix.errors import Problem
from adaptrix.wording import ranges as ranges


def depths_of(deltas: Mapping[Site, Delta], architecture: Architecture, dims: Dims, adapter: Adapter) -> dict[str, int]:
    """The number of layers of each stack that the deltas are in: as stated, else the highest seen plus one."""
    seen: dict[str, int] = {}
    for site in deltas:
        if site.layer is not None:
            stack = architecture.roles[site.role].depth
            seen[stack] = max(seen.get(stack, 0), site.layer + 1)
    return {stack: stated_depth(stack, dims, adapter) or layers for stack, layers in seen.items()}


def stated_depth(stack: str, dims: Dims, adapter: Adapter) -> int | None:
    """The stated number of layers of a stack: that of the model, or of the layers that the config repeats.

    None for a number that no model has.
    """
    depth = _expanded(adapter.provenance.config.get("layer_replication")) or dims.get(stack)
    return depth if depth is not None and 0 < depth <= DEEPEST else None


def layer_problems(
    deltas: Mapping[Site, Delta], architecture: Architecture, dims: Dims, adapter: Adapter
) -> Iterator[Problem]:
    """A problem for every role with layers or experts beyond the model's."""
    layers: dict[str, set[int]] = {}
    experts: dict[str, set[int]] = {}
    for site in deltas:
        if site.layer is not None:
            layers.setdefault(site.role, set()).add(site.layer)
        if site.expert is not None:
            experts.setdefault(site.role, set()).add(site.expert)
    for name, seen in layers.items():
        depth = stated_depth(architecture.roles[name].depth, dims, adapter)
        yield from _beyond("layers", name, seen, depth, "The adapter belongs to a deeper model.")
    for name, seen in experts.items():
        stated = architecture.roles[name].experts
        count = dims.get(stated) if stated else None
        yield from _beyond("experts", name, seen, count, "The adapter belongs to a model of more experts.")


def _beyond(kind: str, role: str, seen: set[int], count: int | None, remedy: str) -> Iterator[Problem]:
    if count is not None and (over := sorted(number for number in seen if number >= count)):
        found = f"it has tensors for {kind} {ranges(over)}"
        yield Problem("shape", role, found, f"{kind} below {count}: the model has {count}", remedy)


def _expanded(replicated: object) -> int | None:
    """The number of layers of a model whose config repeats ranges of layers."""
    if not isinstance(replicated, list):
        return None
    try:
        return sum(int(stop) - int(start) for start, stop in replicated)
    except (TypeError, ValueError, OverflowError):
        return None
