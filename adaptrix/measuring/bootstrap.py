"""Confidence intervals of means over a text: the bootstrap over its windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; None at both ends where there is only one window, or the value is not finite."""

    value: float
    low: float | None = None
    high: float | None = None

    def through(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing ``function`` of the value."""
        ends = [None if end is None else function(end) for end in (self.low, self.high)]
        return Estimate(function(self.value), *ends)


def estimate(sums: NDArray[np.float64], tokens: NDArray[np.float64], seed: int) -> Estimate:
    """The mean a token, from sums ``[windows]`` over so many ``tokens`` each.

    Windows are drawn again with replacement, by the percentile method (Efron & Tibshirani 1993, ch. 13); equal seeds
    draw the same windows, so that estimates on one text are comparable.
    """
    value = float(sums.sum() / tokens.sum())
    count = len(sums)
    if count < 2 or not np.isfinite(sums).all():
        return Estimate(value)
    rng, shares = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        times = rng.multinomial(count, shares)
        drawn[resample] = times @ sums / (times @ tokens)
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))
