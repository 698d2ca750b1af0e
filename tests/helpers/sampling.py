"""The cases of large tables that every run tries; the others wait for the slow one."""

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import product
from typing import Any

import pytest

Case = tuple[Any, ...]


def crossed(*axes: Iterable[Any], always: Collection[Case] = ()) -> list[Any]:
    """Every combination of the values of some axes, for ``parametrize``, marked as :func:`sampled` does."""
    return sampled(list(product(*axes)), always)


def sampled(cases: list[Case], always: Collection[Case] = ()) -> list[Any]:
    """The cases for ``parametrize``, all of them slow but for a sample and for ``always``.

    The sample has a case for each value of the axis that has most of them, and every value of every other axis at
    least once, each about as often as its neighbours.
    """
    assert set(always) <= set(cases)
    chosen = {*always, *sample(cases)}
    return [pytest.param(*case, marks=[] if case in chosen else [pytest.mark.slow]) for case in cases]


def sample(cases: list[Case]) -> list[Case]:
    """The fewest cases, or nearly so, in which every value of every axis is."""
    longest = max(range(len(cases[0])), key=lambda axis: len({case[axis] for case in cases}))
    used: Counter[tuple[int, Any]] = Counter()
    found = []
    for value in dict.fromkeys(case[longest] for case in cases):
        found.append(
            min((c for c in cases if c[longest] == value), key=lambda c: sum(used[pair] for pair in enumerate(c)))
        )
        used.update(enumerate(found[-1]))
    for case in cases:
        if not all(used[pair] for pair in enumerate(case)):
            found.append(case)
            used.update(enumerate(case))
    return found
