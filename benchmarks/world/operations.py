"""What is done to lists of digits: ``a·x + b mod 5``, ciphers that exchange digits, operations on places.

Every operation takes lists ``[N, LENGTH]`` of digits and returns as many; a task is one of them, or one on places
and then one on digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MODULUS, LENGTH = 5, 4
Digits = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Affine:
    """a·x + b mod 5, digit by digit."""

    a: int
    b: int

    def __call__(self, digits: Digits) -> Digits:
        return (self.a * digits + self.b) % MODULUS


@dataclass(frozen=True, slots=True)
class Cipher:
    """Exchanges the two digits of every pair: a permutation that is its own inverse."""

    pairs: tuple[tuple[int, int], ...]

    def __call__(self, digits: Digits) -> Digits:
        table = np.arange(MODULUS)
        for one, other in self.pairs:
            table[[one, other]] = table[[other, one]]
        return table[digits]


@dataclass(frozen=True, slots=True)
class Rotate:
    """Every digit ``by`` places to the left, the first ones to the end."""

    by: int

    def __call__(self, digits: Digits) -> Digits:
        return np.roll(digits, -self.by, axis=1)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The digits of two places change places (counted from 0)."""

    one: int
    other: int

    def __call__(self, digits: Digits) -> Digits:
        order = np.arange(LENGTH)
        order[[self.one, self.other]] = order[[self.other, self.one]]
        return digits[:, order]


@dataclass(frozen=True, slots=True)
class Reverse:
    """The last digit first."""

    def __call__(self, digits: Digits) -> Digits:
        return digits[:, ::-1].copy()


@dataclass(frozen=True, slots=True)
class Sort:
    """In order, the smallest or the largest first."""

    up: bool

    def __call__(self, digits: Digits) -> Digits:
        ordered = np.sort(digits, axis=1)
        return ordered if self.up else ordered[:, ::-1].copy()


@dataclass(frozen=True, slots=True)
class Composed:
    """One operation on places, then one on digits."""

    first: Rotate | Exchange | Reverse | Sort
    then: Affine | Cipher

    def __call__(self, digits: Digits) -> Digits:
        return self.then(self.first(digits))


OnPlaces = Rotate | Exchange | Reverse | Sort
OnDigits = Affine | Cipher
Task = OnPlaces | OnDigits | Composed


def affine() -> list[Affine]:
    """All that are neither the identity nor a constant: 19."""
    return [Affine(a, b) for a in range(1, MODULUS) for b in range(MODULUS) if (a, b) != (1, 0)]


def ciphers() -> list[Cipher]:
    """One exchange, or two without a digit in common: 25."""
    pairs = list(combinations(range(MODULUS), 2))
    twice = [Cipher((one, other)) for one, other in combinations(pairs, 2) if not set(one) & set(other)]
    return [*(Cipher((pair,)) for pair in pairs), *twice]


def on_places() -> list[OnPlaces]:
    """All: 12."""
    exchanges = [Exchange(one, other) for one, other in combinations(range(LENGTH), 2)]
    return [Reverse(), Sort(True), Sort(False), *(Rotate(by) for by in range(1, LENGTH)), *exchanges]


def composed() -> list[Composed]:
    """Whole-list operations with plain sums, plain products and single exchanges: 102."""
    firsts = [Reverse(), Sort(True), Sort(False), *(Rotate(by) for by in range(1, LENGTH))]
    sums = [Affine(1, b) for b in range(1, MODULUS)]
    products = [Affine(a, 0) for a in range(2, MODULUS)]
    singles = [Cipher((pair,)) for pair in combinations(range(MODULUS), 2)]
    return [Composed(first, then) for first in firsts for then in (*sums, *products, *singles)]
