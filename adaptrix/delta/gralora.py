"""GraLoRA (arXiv 2505.20355): k × k blocks of ΔW, each with a low-rank pair of its own, and a plain LoRA beside them.

Block (s, n) of ΔW, s along the rows, is B[s, n·q:(n+1)·q]ᵀ·A[n, :, s·q:(s+1)·q]ᵀ with q = r / k. So the whole has
rank k·r at most.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, flat, missing, product
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_BLOCKS = ("gralora_A", "gralora_B")
_GENERAL = ("gralora_A_general.weight", "gralora_B_general.weight")


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    general = {name: shapes[name] for name in _GENERAL if name in shapes}
    problems = [*missing(shapes, _BLOCKS, where), *flat(general, where)]
    problems += missing(general, _GENERAL, where) if general else ()
    if not problems:
        A, B = (shapes[name] for name in _BLOCKS)
        if len(A) != 3 or len(B) != 3 or 0 in (*A, *B) or A[0] != B[0] or A[2] != B[1] or A[2] % A[0]:
            found, expected = f"gralora_A is {list(A)}, gralora_B is {list(B)}", "[k, in / k, r] and [k, r, out / k]"
            problems.append(Problem("shape", where, found, f"{expected}, where k divides r"))
    if not problems and general:
        problems += product(general, _GENERAL[1], _GENERAL[0], where)
        if (general[_GENERAL[1]][0], general[_GENERAL[0]][1]) != _shape(shapes, {}):
            found = f"the blocks make {_shape(shapes, {})}, the LoRA beside them is of another shape"
            problems.append(Problem("shape", where, found, "one shape"))
    yield from problems


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    A, B = (shapes[name] for name in _BLOCKS)
    return B[0] * B[2], A[0] * A[1]


def _rank(shapes: Shapes, _settings: Settings) -> int:
    blocks = shapes["gralora_A"]
    return blocks[0] * blocks[2] + shapes.get(_GENERAL[0], (0,))[0]


def _factors(arrays: Arrays, _settings: Settings) -> tuple[Matrix, Matrix]:
    own_A, own_B = (arrays[name] for name in _BLOCKS)
    count, width, rank = own_A.shape
    height, part = own_B.shape[2], rank // count
    A, B = np.zeros((count, count, part, count, width)), np.zeros((count, height, count, count, part))
    for n in range(count):
        for s in range(count):
            A[n, s, :, n] = own_A[n, :, s * part : (s + 1) * part].T
            B[s, :, n, s] = own_B[s, n * part : (n + 1) * part].T
    A, B = A.reshape(count * rank, count * width), B.reshape(count * height, count * rank)
    if _GENERAL[0] not in arrays:
        return A, B
    return np.concatenate([A, arrays[_GENERAL[0]]]), np.concatenate([B, arrays[_GENERAL[1]]], axis=1)


def _dense(arrays: Arrays, _settings: Settings) -> Matrix:
    """Block by block: the factors of many small blocks are larger than ΔW."""
    own_A, own_B = (arrays[name] for name in _BLOCKS)
    count, width, rank = own_A.shape
    height, part = own_B.shape[2], rank // count
    whole = np.zeros((count, height, count, width))
    for n in range(count):
        for s in range(count):
            right = own_A[n, :, s * part : (s + 1) * part].T
            whole[s, :, n] = own_B[s, n * part : (n + 1) * part].T @ right
    flat_whole = whole.reshape(count * height, count * width)
    return flat_whole + arrays[_GENERAL[1]] @ arrays[_GENERAL[0]] if _GENERAL[0] in arrays else flat_whole


GRALORA = Parametrisation((*_BLOCKS, *_GENERAL), _faults, _shape, _rank, _factors, _dense)
