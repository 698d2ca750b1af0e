"""LoHa (FedPara, arXiv 2108.06098): ΔW is the elementwise product of two products of low rank.

(B₁·A₁) ∘ (B₂·A₂) has rank r₁·r₂ at most, and is the product of the row-wise Khatri-Rao product of B₁ and B₂ and the
column-wise one of A₁ and A₂: Σᵢⱼ (b₁ᵢ ∘ b₂ⱼ)·(a₁ᵢ ∘ a₂ⱼ)ᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, flat, missing, product
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_ROWS = 256  # of ΔW that are multiplied out at a time


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    problems = [*missing(shapes, _NAMES, where), *flat(shapes, where)]
    yield from problems
    if problems:
        return
    for side in "12":
        yield from product(shapes, f"hada_w{side}_a", f"hada_w{side}_b", where)
    one, other = ((shapes[f"hada_w{side}_a"][0], shapes[f"hada_w{side}_b"][1]) for side in "12")
    if one != other:
        yield Problem("shape", where, f"{list(one)} and {list(other)} are multiplied number by number", "one shape")


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    return shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return shapes["hada_w1_a"][1] * shapes["hada_w2_a"][1]


def _factors(arrays: Arrays, _settings: Settings) -> tuple[Matrix, Matrix]:
    B1, A1, B2, A2 = (arrays[name] for name in _NAMES)
    A = A1[:, None, :] * A2[None, :, :]
    B = B1[:, :, None] * B2[:, None, :]
    return A.reshape(-1, A.shape[2]), B.reshape(len(B), -1)


def _slices(arrays: Arrays) -> Iterator[Matrix]:
    B1, A1, B2, A2 = (arrays[name] for name in _NAMES)
    for start in range(0, len(B1), _ROWS):
        yield (B1[start : start + _ROWS] @ A1) * (B2[start : start + _ROWS] @ A2)


def _dense(arrays: Arrays, _settings: Settings) -> Matrix:
    return np.concatenate(list(_slices(arrays)))


def _energy(arrays: Arrays, _settings: Settings) -> float:
    return float(sum(np.vdot(piece, piece) for piece in _slices(arrays)))


LOHA = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, _dense, _energy)
