"""VeRA (arXiv 2310.11454): ΔW = diag(b)·B·diag(d)·A, with random A and B that all modules share.

A ``[r, widest]`` and B ``[tallest, r]`` are as large as the largest module that is adapted, and each module takes the
first columns and rows of them. A checkpoint has them, or only the seed that they were drawn with.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from adaptrix.delta.parametrisation import LARGEST, Arrays, Parametrisation, Settings, Shapes, missing
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("vera_lambda_b", "vera_lambda_d")
_SHARED = ("vera_A", "vera_B")
_MOST_DRAWN = 1 << 28  # numbers: of rank 1,024 and the widest layers of any model there are half as many
_SETTINGS = {"in": LARGEST, "widest": LARGEST, "tallest": LARGEST, "seed": (1 << 63) - 1}


def _faults(shapes: Shapes, settings: Settings, where: str) -> Iterator[Problem]:
    problems = list(missing(shapes, _NAMES, where))
    for name in _NAMES:
        if name in shapes and (len(shapes[name]) != 1 or not shapes[name][0]):
            found = f"shape {list(shapes[name])}"
            problems.append(Problem("shape", f"{where} {name}", found, "[out] or [r], as of a linear layer"))
    yield from problems
    if problems:
        return
    if any(name in shapes for name in _SHARED):
        yield from _shared_faults(shapes, settings, where)
    elif "widest" in settings and "tallest" in settings:
        (out,), (rank,) = (shapes[name] for name in _NAMES)
        widest, tallest = settings["widest"], settings["tallest"]
        if widest < settings.get("in", 0) or tallest < out or rank * (widest + tallest) > _MOST_DRAWN:
            found = f"A [{rank}, {widest}] and B [{tallest}, {rank}] would be drawn"
            yield Problem("shape", where, found, "matrices as large as the largest module")


def _shared_faults(shapes: Shapes, settings: Settings, where: str) -> Iterator[Problem]:
    """A problem where the shared matrices are of another rank, or smaller than the module."""
    (out,), (rank,) = (shapes[name] for name in _NAMES)
    A, B = (shapes.get(name, ()) for name in _SHARED)
    fits = len(A) == len(B) == 2 and A[0] == B[1] == rank and B[0] >= out and A[1] >= settings.get("in", 1)
    if not fits:
        expected = f"vera_A [{rank}, in or more], vera_B [{out} or more, {rank}]"
        yield Problem("shape", where, f"vera_A is {list(A)}, vera_B is {list(B)}", expected)


def _shape(shapes: Shapes, settings: Settings) -> tuple[int, int]:
    return shapes["vera_lambda_b"][0], settings.get("in", 0)


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return shapes["vera_lambda_d"][0]


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    b, d = (arrays[name][:, None] for name in _NAMES)
    A, B = _projections(arrays, settings, len(d))
    return d * A[:, : settings["in"]], b * B[: len(b)]


def _projections(arrays: Arrays, settings: Settings, rank: int) -> tuple[Matrix, Matrix]:
    """The shared A and B: those of the checkpoint, or drawn again."""
    if _SHARED[0] in arrays:
        return arrays[_SHARED[0]], arrays[_SHARED[1]]
    A, B = _drawn(settings["seed"], rank, settings["widest"], settings["tallest"])
    return A.astype(np.float64), B.astype(np.float64)


@lru_cache(maxsize=1)
def _drawn(seed: int, rank: int, widest: int, tallest: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A and B as torch draws them on a CPU: 24 bits of a Mersenne twister's numbers, uniform within He's bound."""
    twister = np.random.MT19937()
    twister._legacy_seeding(seed & 0xFFFF_FFFF)  # the twister's own, as in torch
    found = []
    for rows, columns in ((rank, widest), (tallest, rank)):
        bound = float(np.float32(sqrt(3) * (sqrt(2) / sqrt(columns))))
        steps = (twister.random_raw(rows * columns) & 0xFF_FFFF) * 2.0**-24
        found.append((steps * float(np.float32(2 * bound)) - bound).astype(np.float32).reshape(rows, columns))
    return found[0], found[1]


VERA = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, settings=_SETTINGS, shared=_SHARED, drawn=True)
