"""Which tasks are in the library, and which are kept: tasks of unseen parameters, and unseen compositions.

Every digit, place, pair and operation of a kept task occurs in some task of the library, in the same role: what is
unseen is that they come together. Nothing could know a parameter of which it never met the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.world.operations import Affine, Cipher, Composed, Exchange, Task, affine, ciphers, composed, on_places

#: tasks of each family in the library, 64 together, and kept
LIBRARY = {"affine": 13, "cipher": 18, "places": 9, "composed": 24}
KEPT = {"affine": 6, "cipher": 7, "places": 3, "composed": 12}


@dataclass(frozen=True)
class Split:
    """Tasks that are trained on, and the two kinds that are not."""

    library: tuple[Task, ...]
    parameters: tuple[Task, ...]
    compositions: tuple[Task, ...]


def split(seed: int) -> Split:
    """The library and the kept tasks of a seed."""
    rng = Random(f"tasks {seed}")
    chosen = {name: _choose(tasks, name, rng) for name, tasks in families().items()}
    library = tuple(task for name in LIBRARY for task in chosen[name][0])
    kept = {name: chosen[name][1] for name in LIBRARY}
    return Split(library, (*kept["affine"], *kept["cipher"], *kept["places"]), tuple(kept["composed"]))


def families() -> dict[str, Sequence[Task]]:
    """All tasks, by family."""
    return {"affine": affine(), "cipher": ciphers(), "places": on_places(), "composed": composed()}


def _choose(tasks: Sequence[Task], name: str, rng: Random) -> tuple[list[Task], list[Task]]:
    """The library is drawn again until enough tasks are left of which it knows every part."""
    always = [task for task in tasks if name == "places" and not isinstance(task, Exchange)]
    others = [task for task in tasks if task not in always]
    while True:
        drawn = rng.sample(others, len(others))
        fill = LIBRARY[name] - len(always)
        library = always + drawn[:fill]
        known = {part for task in library for part in _parts(task)}
        kept = [task for task in drawn[fill:] if known.issuperset(_parts(task))]
        if len(kept) >= KEPT[name]:
            return library, kept[: KEPT[name]]


def _parts(task: Task) -> Iterator[object]:
    """What a task is made of: each has to be in the library for the task to be said in known words."""
    match task:
        case Affine():
            yield from (("a", task.a), ("b", task.b))
        case Cipher():
            yield from task.pairs
        case Exchange():
            yield from (("place", task.one), ("place", task.other))
        case Composed():
            yield from (task.first, task.then)
        case _:
            yield task
