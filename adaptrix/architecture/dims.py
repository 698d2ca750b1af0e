"""Dimensions of a model: named whole numbers, read from its config.json by declared rules.

A rule is a list of alternatives, the first that resolves wins. An alternative is a key of the
config (``"num_key_value_heads"``, dots reach into nested objects), arithmetic over other dimensions
(``"hidden / heads"``) or a number, and may be bound to a flag that the config sets
(``{ value = 1, when = "multi_query" }``) or clears (``unless``); a flag it does not mention is neither.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


_LARGEST = 1 << 40
#: more layers than any model has; a file that names a higher layer is refused
DEEPEST = 100_000


class UnresolvedError(LookupError):
    """An expression names a dimension that has no value, or divides with a remainder."""


@lru_cache(maxsize=1024)
def parse(expression: str) -> ast.expr:
    """The syntax tree of ``+ - * /`` over names and whole numbers; ``ValueError`` for anything else."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"not an expression: {expression!r}") from None
    for node in ast.walk(tree):
        number = isinstance(node, ast.Constant) and type(node.value) is int
        arithmetic = isinstance(node, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Load)
        if not (number or arithmetic or isinstance(node, ast.BinOp | ast.Name)):
            raise ValueError(f"only + - * / over dimensions and whole numbers: {expression!r}")
    return tree


def names_in(expression: str) -> frozenset[str]:
    """The dimensions that an expression mentions."""
    return frozenset(node.id for node in ast.walk(parse(expression)) if isinstance(node, ast.Name))


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """The value of an expression. Division must come out even. Raises :class:`UnresolvedError`."""
    return _evaluate(parse(expression), values)


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            if name not in values:
                raise UnresolvedError(name)
            return values[name]
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            dividend, divisor = _evaluate(left, values), _evaluate(right, values)
            if not divisor or dividend % divisor:
                raise UnresolvedError(f"{ast.unparse(node)} has a remainder")
            return dividend // divisor
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
    raise ValueError(f"unexpected syntax: {ast.dump(node)}")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One source of a dimension's value; ``when`` names a config key that must be true, ``unless`` one that
    must be false (not merely absent: the default of an absent flag is the model class's own)."""

    value: str | int
    when: str | None = None
    unless: str | None = None


Rule = tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Dims:
    """Values by name or expression, and where each came from (``"config"`` or ``"tensors"``)."""

    values: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    _found: dict[str, int | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def get(self, expression: str) -> int | None:
        """The value of a dimension or an expression, None where it is not known."""
        if expression not in self._found:
            self._found[expression] = self._evaluated(expression)
        return self._found[expression]

    def _evaluated(self, expression: str) -> int | None:
        if expression in self.values:
            return self.values[expression]
        try:
            return evaluate(expression, self.values)
        except UnresolvedError:
            return None

    def explain(self, expression: str) -> str:
        """``expression`` with its value and the dimensions it was computed from, for messages."""
        parts = [f"{name}={self.values[name]}" for name in sorted(names_in(expression) & self.values.keys())]
        value = self.get(expression)
        return f"{expression} = {value}" + (
            f" ({', '.join(parts)})" if parts and parts != [f"{expression}={value}"] else ""
        )


def read_dims(rules: Mapping[str, Rule], config: Mapping[str, Any]) -> Dims:
    """Every dimension that the rules and a model's config yield.

    Rules may refer to one another in any order; one that never resolves is left out.
    """
    values: dict[str, int] = {}
    waits = True  # arithmetic waits for dimensions that may still come, before the next alternative
    while pending := rules.keys() - values.keys():
        awaited = pending if waits else frozenset[str]()
        found = {name: _resolve(rules[name], config, values, awaited) for name in pending}
        known = {name: value for name, value in found.items() if value is not None}
        if not known and not waits:
            break
        waits = bool(known)
        values |= known
    ordered = {name: values[name] for name in rules if name in values}
    return Dims(MappingProxyType(ordered), MappingProxyType(dict.fromkeys(ordered, "config")))


def unusable(rules: Mapping[str, Rule], config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys of a config that the rules look at and whose values are no dimensions, with these."""
    found: dict[str, Any] = {}
    for option in (option for rule in rules.values() for option in rule):
        if isinstance(option.value, str) and _applies(option, config):
            value = _lookup(config, option.value)
            if value not in (None, "auto") and not _is_size(value):  # "auto" asks for the next alternative
                found[option.value] = value
    yield from found.items()


def _resolve(rule: Rule, config: Mapping[str, Any], values: Mapping[str, int], awaited: Set[str]) -> int | None:
    for option in rule:
        if not _applies(option, config):
            continue
        if isinstance(option.value, int):
            return option.value
        value = _lookup(config, option.value)
        if _is_size(value):
            return int(value)
        try:
            if names_in(option.value) & awaited:
                return None
            return evaluate(option.value, values)
        except (UnresolvedError, ValueError):
            continue
    return None


def _applies(option: Alternative, config: Mapping[str, Any]) -> bool:
    """True where the flag that an alternative is bound to is set, or cleared, as it asks."""
    if option.when is not None and not _lookup(config, option.when):
        return False
    return option.unless is None or _lookup(config, option.unless) is False


def _is_size(value: Any) -> bool:
    """True for a whole number of at most 2⁴⁰, so that what is computed from it stays small.

    JSON does not distinguish whole numbers: a config that other tools have written may say 4.0.
    """
    return type(value) in (int, float) and 0 <= value <= _LARGEST and value == int(value)


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for step in key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
