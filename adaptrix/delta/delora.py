"""DeLoRA (arXiv 2503.18225): ΔW = B·diag(λ / (r·‖aᵢ‖·‖bᵢ‖))·A·diag(‖w‖), with the norms of the base's columns saved.

aᵢ are the rows of A and bᵢ the columns of B, no norm taken for less than 1e-4, as ``peft/tuners/delora/layer.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, flat, missing, product
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_FACTORS = ("delora_A", "delora_B")
_NAMES = (*_FACTORS, "delora_lambda", "delora_w_norm")
_LEAST = 1e-4


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    problems = list(missing(shapes, _NAMES, where))
    problems += flat({name: shapes[name] for name in _FACTORS if name in shapes}, where)
    yield from problems
    if problems:
        return
    yield from product(shapes, "delora_B", "delora_A", where)
    for name, expected in (("delora_lambda", (1,)), ("delora_w_norm", (shapes["delora_A"][1],))):
        if shapes[name] != expected:
            yield Problem("shape", f"{where} {name}", f"shape {list(shapes[name])}", f"{list(expected)}")


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    return shapes["delora_B"][0], shapes["delora_A"][1]


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return shapes["delora_A"][0]


def _factors(arrays: Arrays, _settings: Settings) -> tuple[Matrix, Matrix]:
    A, B, bound, norms = (arrays[name] for name in _NAMES)
    sizes = np.maximum(np.linalg.norm(A, axis=1), _LEAST) * np.maximum(np.linalg.norm(B, axis=0), _LEAST)
    return (bound / len(A) / sizes)[:, None] * A * norms, B


DELORA = Parametrisation(_NAMES, _faults, _shape, _rank, _factors)
