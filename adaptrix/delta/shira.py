"""SHiRA (arXiv 2406.13175): ΔW is a few numbers at chosen places, and 0 elsewhere.

``shira_weight`` ``[n]`` and ``shira_indices`` ``[2, n]``, rows and columns. The sizes of the layer are settings, for
the tensors do not say them. ΔW may have full rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adaptrix.delta.parametrisation import LARGEST, Arrays, Parametrisation, Settings, Shapes, by_identity, missing
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("shira_weight", "shira_indices")


def _faults(shapes: Shapes, _settings: Settings, where: str) -> Iterator[Problem]:
    problems = list(missing(shapes, _NAMES, where))
    yield from problems
    if not problems:
        numbers, places = (shapes[name] for name in _NAMES)
        if len(numbers) != 1 or not numbers[0] or places != (2, *numbers):
            found = f"shira_weight is {list(numbers)}, shira_indices is {list(places)}"
            yield Problem("shape", where, found, "[n] and [2, n]")


def _shape(_shapes: Shapes, settings: Settings) -> tuple[int, int]:
    return settings.get("out", 0), settings.get("in", 0)


def _rank(_shapes: Shapes, settings: Settings) -> int:
    return max(1, min(_shape(_shapes, settings)))


def _dense(arrays: Arrays, settings: Settings) -> Matrix:
    numbers, places = arrays["shira_weight"], arrays["shira_indices"].astype(np.int64)
    whole = np.zeros((settings["out"], settings["in"]))
    np.add.at(whole, tuple(places), numbers)
    return whole


def _misplaced(arrays: Arrays, settings: Settings) -> bool:
    places, sides = arrays["shira_indices"], np.array([settings["out"], settings["in"]])[:, None]
    return bool(((places < 0) | (places >= sides)).any())


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    return by_identity(_dense(arrays, settings))


def _energy(arrays: Arrays, settings: Settings) -> float:
    whole = _dense(arrays, settings)
    return float(np.vdot(whole, whole))


SHIRA = Parametrisation(
    _NAMES, _faults, _shape, _rank, _factors, _dense, _energy,
    settings={"out": LARGEST, "in": LARGEST}, integers=("shira_indices",),
    misplaced=_misplaced,
)  # fmt: skip
