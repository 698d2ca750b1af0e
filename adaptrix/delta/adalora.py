"""AdaLoRA (arXiv 2303.10512): ΔW = B·diag(E)·A, with a rank of its own at each module after pruning.

The scale is alpha / (r₀ + 1e-5), where r₀ is the rank before pruning, as ``peft/tuners/adalora/layer.py`` has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, flat, missing, product
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("lora_A", "lora_B", "lora_E")


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    """A module may have lost its whole rank: then the tensors are empty, and ΔW is zero."""
    problems = [*missing(shapes, _NAMES, where), *flat(shapes, where, empty=True)]
    yield from problems
    if problems:
        return
    yield from product(shapes, "lora_B", "lora_A", where)
    if shapes["lora_E"] != (shapes["lora_A"][0], 1):
        found = f"lora_E is {list(shapes['lora_E'])}, lora_A is {list(shapes['lora_A'])}"
        yield Problem("rank", where, found, "lora_E [r, 1] and lora_A [r, in]")
    if not shapes["lora_B"][0] or not shapes["lora_A"][1]:
        yield Problem("shape", where, "a weight without rows or columns", "lora_A [r, in] and lora_B [out, r]")


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    return shapes["lora_B"][0], shapes["lora_A"][1]


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return max(1, shapes["lora_A"][0])


def _factors(arrays: Arrays, _settings: Settings) -> tuple[Matrix, Matrix]:
    A, B = arrays["lora_E"] * arrays["lora_A"], arrays["lora_B"]
    if not len(A):
        return np.zeros((1, A.shape[1])), np.zeros((len(B), 1))
    return A, B


ADALORA = Parametrisation(_NAMES, _faults, _shape, _rank, _factors)
