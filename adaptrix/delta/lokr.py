"""LoKr (LyCORIS, arXiv 2309.14859): ΔW is the Kronecker product of two matrices, each whole or a product of low rank.

kron(B₁·A₁, B₂·A₂) = kron(B₁, B₂)·kron(A₁, A₂), whose rank is that of the one times that of the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import Arrays, Parametrisation, Settings, Shapes, flat, product
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_SIDES = ("lokr_w1", "lokr_w2")
_NAMES = tuple(f"{side}{leaf}" for side in _SIDES for leaf in ("", "_a", "_b"))


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    problems = list(flat(shapes, where))
    for side in _SIDES:
        held = [name for name in (side, f"{side}_a", f"{side}_b") if name in shapes]
        if held not in ([side], [f"{side}_a", f"{side}_b"]):
            found, expected = " and ".join(held) or "missing", f"{side}, or {side}_a and {side}_b"
            remedy = "peft would leave what is missing at its random start."
            problems.append(Problem("adapter-incomplete", f"{where} {side}", found, expected, remedy))
    yield from problems
    for side in () if problems else _SIDES:
        if side not in shapes:
            yield from product(shapes, f"{side}_a", f"{side}_b", where)


def _side(shapes: Shapes, side: str) -> tuple[int, int, int]:
    """(rows, columns, rank) of one of the two matrices."""
    if side in shapes:
        rows, columns = shapes[side]
        return rows, columns, min(rows, columns)
    return shapes[f"{side}_a"][0], shapes[f"{side}_b"][1], shapes[f"{side}_a"][1]


def _shape(shapes: Shapes, _settings: Settings) -> tuple[int, int]:
    (rows, columns, _), (more_rows, more_columns, _) = (_side(shapes, side) for side in _SIDES)
    return rows * more_rows, columns * more_columns


def _rank(shapes: Shapes, _settings: Settings) -> int:
    return _side(shapes, "lokr_w1")[2] * _side(shapes, "lokr_w2")[2]


def _pair(arrays: Arrays, side: str) -> tuple[Matrix, Matrix]:
    """(A, B) of one of the two matrices; one of them is the identity where it is whole."""
    if side not in arrays:
        return arrays[f"{side}_b"], arrays[f"{side}_a"]
    whole = arrays[side]
    rows, columns = whole.shape
    return (whole, np.eye(rows)) if rows <= columns else (np.eye(columns), whole)


def _whole(arrays: Arrays, side: str) -> Matrix:
    return arrays[side] if side in arrays else arrays[f"{side}_a"] @ arrays[f"{side}_b"]


def _kron(one: Matrix, other: Matrix) -> Matrix:
    return np.asarray(np.kron(one, other), np.float64)


def _factors(arrays: Arrays, _settings: Settings) -> tuple[Matrix, Matrix]:
    (A1, B1), (A2, B2) = (_pair(arrays, side) for side in _SIDES)
    return _kron(A1, A2), _kron(B1, B2)


def _dense(arrays: Arrays, _settings: Settings) -> Matrix:
    return _kron(*(_whole(arrays, side) for side in _SIDES))


def _energy(arrays: Arrays, _settings: Settings) -> float:
    """The norm of a Kronecker product is the product of the norms."""
    one, other = (_whole(arrays, side) for side in _SIDES)
    return float(np.vdot(one, one) * np.vdot(other, other))


LOKR = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, _dense, _energy)
