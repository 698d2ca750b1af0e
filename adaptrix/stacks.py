"""Stacks of layers: how deep each is, and which layers an adapter has too many or too few of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptrix.adapter import Adapter
from adaptrix.architecture import Architecture, Site
from adaptrix.delta import LowRank
from adaptrix.dims import DEEPEST, Dims
from adaptrix.errors import Problem


def depths_of(
    deltas: Mapping[Site, LowRank], architecture: Architecture, dims: Dims, adapter: Adapter
) -> dict[str, int]:
    """The number of layers of each stack that the deltas are in: as stated, else the highest seen plus one."""
    seen: dict[str, int] = {}
    for site in deltas:
        if site.layer is not None:
            stack = architecture.roles[site.role].depth
            seen[stack] = max(seen.get(stack, 0), site.layer + 1)
    return {stack: _depth(stack, dims, adapter) or layers for stack, layers in seen.items()}


def _depth(stack: str, dims: Dims, adapter: Adapter) -> int | None:
    """The layers of a stack, as far as stated: those of the model, or of what the config repeats of it.

    A number that no model has is as good as none.
    """
    depth = _expanded(adapter.provenance.config.get("layer_replication")) or dims.get(stack)
    return depth if depth is not None and 0 < depth <= DEEPEST else None


def layer_problems(
    deltas: Mapping[Site, LowRank], architecture: Architecture, dims: Dims, adapter: Adapter
) -> Iterator[Problem]:
    """A problem for every role with layers beyond the model's, or without tensors where there should be some."""
    layers: dict[str, set[int]] = {}
    for site in deltas:
        if site.layer is not None:
            layers.setdefault(site.role, set()).add(site.layer)
    faulty = _faulty(adapter, architecture)
    for role, seen in layers.items():
        depth = _depth(architecture.roles[role].depth, dims, adapter)
        beyond = sorted(layer for layer in seen if depth is not None and layer >= depth)
        if beyond:
            yield Problem(
                "layers",
                role,
                f"it has tensors for layers {ranges(beyond)}",
                f"layers below {depth}: the model has {depth}",
                "The adapter belongs to a deeper model.",
            )
        wanted = range(depth if depth is not None else max(seen) + 1)
        missing = [layer for layer in wanted if layer not in seen and (role, layer) not in faulty]
        if missing and _every_layer(adapter) and not architecture.roles[role].optional and architecture.dims:
            yield Problem(
                "incomplete",
                role,
                f"no tensors for layers {ranges(missing)}",
                "every layer, as the config says",
                "The checkpoint is incomplete: fetch it again.",
            )


def _faulty(adapter: Adapter, architecture: Architecture) -> set[tuple[str, int | None]]:
    """Role and layer of the modules that reading found fault with: their tensors are there, not missing."""
    sites = (architecture.locate(problem.where.partition(" ")[0]) for problem in adapter.problems)
    return {(site.role, site.layer) for site in sites if site is not None}


def _expanded(replicated: object) -> int | None:
    """The layers of a model whose config says which ranges of layers to repeat."""
    if not isinstance(replicated, list):
        return None
    try:
        return sum(int(stop) - int(start) for start, stop in replicated)
    except (TypeError, ValueError, OverflowError):
        return None


def _every_layer(adapter: Adapter) -> bool:
    """Whether the config targets plain module names in all layers, so that a gap means a loss.

    What was pruned has a gap on purpose.
    """
    config = adapter.provenance.config
    targets = config.get("target_modules")
    plain = isinstance(targets, list) and not any(char.isdigit() for name in targets for char in str(name))
    return (
        plain
        and not adapter.altered
        and config.get("layers_to_transform") in (None, [])
        and not config.get("exclude_modules")
    )


def ranges(layers: list[int]) -> str:
    """Sorted layers in short: ``0-3,8``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
