"""The choice of the layers that a fitted plan keeps: backward elimination from all of them.

Each round drops the layer without which KL(full ‖ the rest) is smallest on some windows, and measures the remaining
layers again, since the effect of a layer depends on the others: 57 evaluations for 6 of 12 layers, 392 for 16 of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: returns the loss of each of some sets of layers
Losses = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]


def choose(active: Sequence[int], depth: int, count: int, losses: Losses) -> tuple[int, ...]:
    """The layers to keep, sorted: ``count`` of ``depth``.

    ``active``: those with deltas; ``losses``: measures sets of layers. Where fewer than ``count`` have deltas, the
    lowest others make up the number. Of two layers that are missed equally, the higher is dropped.
    """
    kept = sorted(active)
    while len(kept) > count:
        without = losses([tuple(other for other in kept if other != layer) for layer in kept])
        _, least = min((loss, -layer) for loss, layer in zip(without, kept, strict=True))
        kept.remove(-least)
    others = [layer for layer in range(depth) if layer not in kept]
    return tuple(sorted([*kept, *others[: count - len(kept)]]))


def evaluations(active: int, count: int) -> int:
    """The number of sets of layers that :func:`choose` measures."""
    return sum(range(count + 1, active + 1))
