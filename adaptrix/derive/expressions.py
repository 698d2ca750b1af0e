"""The search for the expression of a size, from how the size changes with the config.

Every dimension and every size is a vector: its values over a series of models, each built from a config
with one number changed. An expression matches where it agrees in all of them, which a coincidence of one
model's numbers (32 heads, 32 layers) cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations_with_replacement

Vector = tuple[int, ...]
Products = Mapping[Vector, str]

_COEFFICIENTS = (1, 2, 3, 4)
_LARGEST_COEFFICIENT = 64
_LARGEST_SHIFT = 64


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression, and why it may be a coincidence (empty where it cannot be)."""

    expression: str
    doubt: str = ""


class ExpressionSearch:
    """A search over ``dims``: the values of each dimension, model by model."""

    def __init__(self, dims: Mapping[str, Vector]) -> None:
        self.dims = dims
        self._varied = _products({name: vector for name, vector in dims.items() if not self.fixed(name)})
        self._all = _products(dims)

    def find(self, target: Vector) -> Expression | None:
        """The simplest expression of a size ``target``; None where nothing matches.

        Dimensions that could not be varied are a last resort, and always in doubt.
        """
        found = chain.from_iterable(_expressions(products, target) for products in (self._varied, self._all))
        text = next(found, None)
        return None if text is None else Expression(text, self._doubt(text))

    def fixed(self, name: str) -> bool:
        """True where all models have the same value, so that what depends on it is not known."""
        return len(set(self.dims[name])) == 1

    def _doubt(self, text: str) -> str:
        """The reason why another dimension may be meant: one that always has the same value, or that never varies."""
        names = [word for word in text.split() if word in self.dims]
        if unsure := [name for name in names if self.fixed(name)]:
            return f"{', '.join(unsure)} could not be varied"
        for name in names:
            if twins := [other for other in self.dims if other != name and self.dims[other] == self.dims[name]]:
                return f"{name} may be {' or '.join(twins)}"
        numbers = {word for word in text.split() if word.isdigit()}
        equal = [name for name in self.dims if self.fixed(name) and str(self.dims[name][0]) in numbers]
        return f"a number here may be {' or '.join(equal)}" if equal else ""


def _expressions(products: Products, target: Vector) -> Iterator[str]:
    yield from _multiples(products, target)
    yield from _fractions(products, target)
    yield from _shifts(products, target)
    yield from _sums(products, target, terms=2)
    yield from _sums(products, target, terms=3)


def _multiples(products: Products, target: Vector, most: int = _LARGEST_COEFFICIENT) -> Iterator[str]:
    for coefficient in range(1, most + 1):
        if not any(size % coefficient for size in target):
            text = products.get(tuple(size // coefficient for size in target))
            if text is not None:
                yield _times(coefficient, text)


def _fractions(products: Products, target: Vector) -> Iterator[str]:
    for divisor in range(2, _LARGEST_COEFFICIENT + 1):
        if (text := products.get(tuple(size * divisor for size in target))) is not None:
            yield f"{text} / {divisor}"


def _shifts(products: Products, target: Vector) -> Iterator[str]:
    for vector, text in products.items():
        for coefficient in _COEFFICIENTS if len(set(vector)) > 1 else ():
            gaps = set(_minus(target, coefficient, vector))
            if len(gaps) == 1 and 0 < (gap := gaps.pop()) <= _LARGEST_SHIFT:
                yield f"{_times(coefficient, text)} + {gap}"


def _sums(products: Products, target: Vector, terms: int) -> Iterator[str]:
    """Sums of so many products, each at most four times."""
    for vector, text in products.items():
        for coefficient in _COEFFICIENTS:
            rest = _minus(target, coefficient, vector)
            if min(rest) > 0:
                more = _multiples(products, rest, 4) if terms == 2 else _sums(products, rest, terms - 1)
                yield from (f"{_times(coefficient, text)} + {other}" for other in more)


def _minus(target: Vector, coefficient: int, vector: Vector) -> Vector:
    return tuple(size - coefficient * value for size, value in zip(target, vector, strict=True))


def _times(coefficient: int, text: str) -> str:
    return text if coefficient == 1 else f"{coefficient} * {text}"


def _products(dims: Mapping[str, Vector]) -> dict[Vector, str]:
    """The simplest product that has each vector: one dimension, two, or either over another."""
    singles = [(name, vector) for name, vector in dims.items()]
    doubles = [
        (f"{one} * {other}", tuple(x * y for x, y in zip(dims[one], dims[other], strict=True)))
        for one, other in combinations_with_replacement(dims, 2)
    ]
    quotients = (
        (f"{text} / {name}", tuple(x // d for x, d in zip(vector, divisor, strict=True)))
        for text, vector in singles + doubles
        for name, divisor in dims.items()
        if name not in text.split() and all(d and not x % d for x, d in zip(vector, divisor, strict=True))
    )
    table: dict[Vector, str] = {}
    for text, vector in chain(singles, doubles, quotients):
        table.setdefault(vector, text)
    return table
