"""The description of one way to write ΔW with few numbers, and checks that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

Arrays = Mapping[str, Matrix]
Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, int]

#: numbers of ΔW: more than the largest linear layer of any model has; small tensors can name far more
LARGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Parametrisation:
    """One way to write ΔW, without its scale. Each function is given tensors or shapes by name, and the settings.

    - ``names``: every tensor that a delta may have.
    - ``faults``: the problems of tensors that do not go together; the other functions are called where there are none.
    - ``shape``: (out, in) of ΔW.
    - ``rank``: of its factors, at least 1, whether or not a dense ΔW would be smaller.
    - ``factors``: A ``[rank, in]`` and B ``[out, rank]`` in fp64, with ΔW = B·A.
    - ``dense``: ΔW itself, where there is a shorter way than B·A.
    - ``energy``: ‖ΔW‖²_F, where there is a shorter way than from the factors.
    - ``settings``: whole numbers that the tensors do not say, each with the largest that it can be. ``in`` and
      ``out`` are sizes of the layer, ``widest`` and ``tallest`` the largest among all layers of the adapter.
    - ``integers``: tensors of whole numbers.
    - ``misplaced``: True where one of these names a place that is not there.
    - ``shared``: tensors that all deltas of an adapter have in common; ``drawn`` where they may be missing.
    """

    names: Collection[str]
    faults: Callable[[Shapes, Settings, str], Iterator[Problem]]
    shape: Callable[[Shapes, Settings], tuple[int, int]]
    rank: Callable[[Shapes, Settings], int]
    factors: Callable[[Arrays, Settings], tuple[Matrix, Matrix]]
    dense: Callable[[Arrays, Settings], Matrix] | None = None
    energy: Callable[[Arrays, Settings], float] | None = None
    settings: Mapping[str, int] | None = None
    shared: Collection[str] = ()
    drawn: bool = False
    integers: Collection[str] = ()
    misplaced: Callable[[Arrays, Settings], bool] | None = None


def missing(shapes: Shapes, names: Collection[str], where: str) -> Iterator[Problem]:
    """A problem for each of these tensors that is not there."""
    for name in names:
        if name not in shapes:
            remedy = "peft would leave it at its random start."
            yield Problem("adapter-incomplete", f"{where} {name}", "missing", " and ".join(names), remedy)


def flat(shapes: Shapes, where: str, *, empty: bool = False) -> Iterator[Problem]:
    """A problem for each tensor that is not of two dimensions, or has none in one; ``empty``: where 0 is a rank."""
    for name, shape in shapes.items():
        if len(shape) != 2 or (0 in shape and not empty):
            found = f"shape {list(shape)}"
            yield Problem("shape", f"{where} {name}", found, "two dimensions, none of them 0, as of a linear layer")


def product(shapes: Shapes, left: str, right: str, where: str) -> Iterator[Problem]:
    """A problem for two matrices that cannot be multiplied: ``left`` ``[out, r]``, ``right`` ``[r, in]``."""
    one, other = shapes[left], shapes[right]
    if one[1] != other[0]:
        found = f"{left} is {list(one)}, {right} is {list(other)}"
        yield Problem("rank", where, found, f"as many columns of {left} as rows of {right}")


def by_identity(whole: Matrix) -> tuple[Matrix, Matrix]:
    """Factors (A, B) of a matrix of full rank: the one of the shorter side is the identity."""
    out, inp = whole.shape
    return (whole, np.eye(out)) if out <= inp else (np.eye(inp), whole)
