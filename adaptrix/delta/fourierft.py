"""FourierFT (arXiv 2405.03003): ΔW is the real part of the inverse Fourier transform of a few numbers.

``fourierft_spectrum`` ``[n]`` stands at n places of ``[out, in]``, which peft draws from a seed: the first of a
permutation of all. The sizes of the layer are settings, for the tensor does not say them. ΔW has full rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adaptrix.delta.parametrisation import (
    LARGEST,
    Arrays,
    Parametrisation,
    Settings,
    Shapes,
    by_identity,
    missing,
)
from adaptrix.delta.spectrum import Matrix
from adaptrix.errors import Problem

_NAMES = ("fourierft_spectrum",)
_SETTINGS = {"out": LARGEST, "in": LARGEST, "seed": (1 << 63) - 1}
_MOST = 1 << 20


def _faults(shapes: Shapes, settings: Settings, where: str) -> Iterator[Problem]:
    yield from missing(shapes, _NAMES, where)
    shape = shapes.get("fourierft_spectrum", (1,))
    places = settings.get("out", LARGEST) * settings.get("in", LARGEST)
    if len(shape) != 1 or not 0 < shape[0] <= min(places, _MOST):
        found, expected = f"shape {list(shape)}", "[n], no more than ΔW has numbers"
        yield Problem("shape", f"{where} fourierft_spectrum", found, expected)


def _shape(_shapes: Shapes, settings: Settings) -> tuple[int, int]:
    return settings.get("out", 0), settings.get("in", 0)


def _rank(_shapes: Shapes, settings: Settings) -> int:
    return max(1, min(_shape(_shapes, settings)))


def _dense(arrays: Arrays, settings: Settings) -> Matrix:
    spectrum = arrays["fourierft_spectrum"]
    whole = np.zeros((settings["out"], settings["in"]))
    whole.flat[_places(settings["seed"], whole.size, len(spectrum))] = spectrum
    return np.asarray(np.fft.ifft2(whole).real)


def _factors(arrays: Arrays, settings: Settings) -> tuple[Matrix, Matrix]:
    return by_identity(_dense(arrays, settings))


def _energy(arrays: Arrays, settings: Settings) -> float:
    whole = _dense(arrays, settings)
    return float(np.vdot(whole, whole))


@lru_cache(maxsize=64)
def _places(seed: int, size: int, count: int) -> NDArray[np.int64]:
    """The first ``count`` numbers of torch's permutation of ``size``, which exchanges one place after another with one
    that a Mersenne twister chooses among the rest."""
    twister = np.random.MT19937()
    twister._legacy_seeding(seed & 0xFFFF_FFFF)  # the twister's own, as in torch
    moved: dict[int, int] = {}
    found = []
    for place, drawn in enumerate(twister.random_raw(count).tolist()):
        other = place + drawn % (size - place)
        found.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return np.array(found, np.int64)


FOURIERFT = Parametrisation(_NAMES, _faults, _shape, _rank, _factors, _dense, _energy, settings=_SETTINGS)
