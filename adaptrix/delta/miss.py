"""MiSS (arXiv 2409.15371): ΔW adds one row of numbers to every r-th column of a weight.

ΔW = blockᵀ·A with A[j, i] = 1 where i mod r = j, and 0 elsewhere; ``block`` ``[r, out]``, or ``[r, m]`` repeated along
the rows of ΔW ("mini"). The sizes of the layer are settings, for the tensor does not say them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import LARGEST, Arrays, Parametrisation, Settings, Shapes, flat, missing
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("miss_block",)


def _faults(shapes: Shapes, settings: Settings, where: str) -> Iterator[Problem]:
    problems = [*missing(shapes, _NAMES, where), *flat(shapes, where)]
    yield from problems
    if problems:
        return
    rank, columns = shapes["miss_block"]
    out, inp = settings.get("out", columns), settings.get("in", rank)
    if out % columns or inp < rank:
        found = f"miss_block is {[rank, columns]} and the weight {[out, inp]}"
        yield Problem("shape", where, found, "[r, m], where m divides the rows and r is at most the columns")


def _shape(_shapes: Shapes, settings: Settings) -> tuple[int, int]:
    return settings.get("out", 0), settings.get("in", 0)


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return shapes["miss_block"][0]


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    block = arrays["miss_block"]
    rank, columns = block.shape
    A = (np.arange(settings["in"]) % rank == np.arange(rank)[:, None]).astype(np.float64)
    return A, np.tile(block, settings["out"] // columns).T


def _dense(arrays: Arrays, settings: Settings) -> Matrix:
    block = arrays["miss_block"]
    rank, columns = block.shape
    return np.tile(block, settings["out"] // columns).T[:, np.arange(settings["in"]) % rank]


MISS = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, _dense, settings={"out": LARGEST, "in": LARGEST})
