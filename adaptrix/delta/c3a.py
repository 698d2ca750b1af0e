"""C3A (arXiv 2407.19342): ΔW of circulant blocks, each of one vector w: block[i, j] = w[(j − i) mod b].

``c3a_kernel`` is ``[out / b, in / b, b]``; peft divides by the columns of ΔW, which is the scale. ΔW has full rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, by_identity, missing
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("c3a_kernel",)


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    yield from missing(shapes, _NAMES, where)
    kernel = shapes.get("c3a_kernel", (1, 1, 1))
    if len(kernel) != 3 or 0 in kernel:
        yield Problem("shape", f"{where} c3a_kernel", f"shape {list(kernel)}", "[out / b, in / b, b], none of them 0")


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    rows, columns, size = shapes["c3a_kernel"]
    return rows * size, columns * size


def _rank(shapes: Shapes, settings: Settings) -> int:
    return min(_shape(shapes, settings))


def _dense(arrays: Arrays, _settings: Settings) -> Matrix:
    kernel = arrays["c3a_kernel"]
    rows, columns, size = kernel.shape
    index = (np.arange(size) - np.arange(size)[:, None]) % size
    return kernel[:, :, index].transpose(0, 2, 1, 3).reshape(rows * size, columns * size)


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    return by_identity(_dense(arrays, settings))


def _energy(arrays: Arrays, _settings: Settings) -> float:
    """Every number is there once in each row of its block."""
    kernel = arrays["c3a_kernel"]
    return float(np.vdot(kernel, kernel) * kernel.shape[2])


C3A = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, _dense, _energy)
