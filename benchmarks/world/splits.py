"""Which tasks are in the library, and which are kept: tasks of unseen parameters, and unseen compositions.

Every digit, place, pair and operation of a kept task occurs in some task of the library, in the same role: what is
unseen is that they come together. Nothing could know a parameter of which it never met the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

import numpy as np

from benchmarks.world.operations import (
    LENGTH,
    MODULUS,
    Affine,
    Cipher,
    Composed,
    Exchange,
    Task,
    affine,
    ciphers,
    composed,
    on_places,
)

#: tasks of each family in the library, 64 together, and kept
LIBRARY = {"affine": 13, "cipher": 18, "places": 9, "composed": 24}
KEPT = {"affine": 6, "cipher": 7, "places": 3, "composed": 12}


@dataclass(frozen=True)
class Split:
    """Tasks that are trained on: the ``library`` of 64, and in ``more`` every composition that does what neither one of
    these nor a kept task does; and the two kinds of tasks that are kept.
    """

    library: tuple[Task, ...]
    parameters: tuple[Task, ...]
    compositions: tuple[Task, ...]
    more: tuple[Task, ...]


def split(seed: int) -> Split:
    """The library and the kept tasks of a seed; drawn again until enough tasks can be kept."""
    rng, every = Random(f"tasks {seed}"), families()
    while True:
        library = {name: _library(tasks, name, rng) for name, tasks in every.items()}
        known = [task for tasks in library.values() for task in tasks]
        kept = {name: _keepable(tasks, library[name], known, rng)[: KEPT[name]] for name, tasks in every.items()}
        if all(len(tasks) == KEPT[name] for name, tasks in kept.items()):
            parameters, compositions = (*kept["affine"], *kept["cipher"], *kept["places"]), tuple(kept["composed"])
            taken = {_meaning(task) for task in (*known, *parameters, *compositions)}
            more = tuple(task for task in every["composed"] if _meaning(task) not in taken)
            return Split(tuple(known), parameters, compositions, more)


def families() -> dict[str, Sequence[Task]]:
    """All tasks, by family."""
    return {"affine": affine(), "cipher": ciphers(), "places": on_places(), "composed": composed()}


def _library(tasks: Sequence[Task], name: str, rng: Random) -> list[Task]:
    """Of the operations on places all but exchanges are in it: reversing has no other parameters to be kept."""
    always = [task for task in tasks if name == "places" and not isinstance(task, Exchange)]
    others = [task for task in tasks if task not in always]
    return always + rng.sample(others, LIBRARY[name] - len(always))


def _keepable(tasks: Sequence[Task], family: Sequence[Task], library: Sequence[Task], rng: Random) -> list[Task]:
    """Tasks made of known parts that do what no task of the library does: 4·x is also a cipher, for one."""
    parts, done = {part for task in family for part in _parts(task)}, {_meaning(task) for task in library}
    kept = [task for task in tasks if _meaning(task) not in done and parts.issuperset(_parts(task))]
    return rng.sample(kept, len(kept))


@cache
def _meaning(task: Task) -> bytes:
    """The same for two tasks that do the same."""
    every = np.array(list(product(range(MODULUS), repeat=LENGTH)))
    return task(every).tobytes()


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
