"""Which layers a fitted plan keeps: from all of them, the one that is missed least goes, again and again.

How much a layer is missed is KL(full ‖ what is left) on some windows, measured anew each time, for what a layer does
depends on what is left of the others: 57 looks for 6 of 12 layers, 392 for 16 of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: the losses of some sets of layers
Losses = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]


def choose(active: Sequence[int], depth: int, count: int, losses: Losses) -> tuple[int, ...]:
    """``count`` of ``depth`` layers, sorted. ``active``: those with deltas, ``losses``: what sets of them cost.

    Where fewer have deltas, the lowest others make up the number. The higher layer goes where two are equal.
    """
    kept = sorted(active)
    while len(kept) > count:
        without = losses([tuple(other for other in kept if other != layer) for layer in kept])
        _, least = min((loss, -layer) for loss, layer in zip(without, kept, strict=True))
        kept.remove(-least)
    others = [layer for layer in range(depth) if layer not in kept]
    return tuple(sorted([*kept, *others[: count - len(kept)]]))


def looks(active: int, count: int) -> int:
    """How many sets of layers a choice measures."""
    return sum(range(count + 1, active + 1))
