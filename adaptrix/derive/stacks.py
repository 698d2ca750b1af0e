"""The stacks of layers among the paths of a model, and the config keys that count them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adaptrix.derive.survey import Family, Model, changed
from adaptrix.errors import AdaptrixError

_INDEX = re.compile(r"\.(\d+)(?=\.|$)")
_EXPERT = re.compile(r"\.experts\.\d+(?=\.|$)")

_FEW = 3


@dataclass(frozen=True)
class Stacks:
    """The stacks of layers of a model, each by the path that its layers share (``model.layers``).

    ``keys``: stack -> the config key that counts its layers; ``uncounted``: stack -> its layers, where no key counts
    them; ``counts``: stack -> its layers, for all.
    """

    keys: Mapping[str, str]
    uncounted: Mapping[str, int]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, family: Family, config: Mapping[str, Any], base: Model) -> Stacks:
        counts = _counts(base.weights)
        keys: dict[str, str] = {}
        for key, value in base.numbers.items():
            if value in counts.values():
                keys |= dict.fromkeys(_counted_by(family, config, key, value, counts), key)
        uncounted = {stack: n for stack, n in counts.items() if stack not in keys and _alike(base.weights, stack, n)}
        return cls(keys, uncounted, counts)

    def stack(self, path: str) -> str | None:
        """The stack that a path is in, None outside the layers."""
        hit = _INDEX.search(path)
        stack = path[: hit.start()] if hit else ""
        return stack if stack in self.keys or stack in self.uncounted else None

    def pattern(self, path: str) -> str:
        """The path with ``{layer}`` and ``{expert}`` for its numbers; other numbers stay."""
        stack = self.stack(path)
        if stack is None:
            return path
        rest = _INDEX.sub("", path[len(stack) :], count=1)
        return stack + ".{layer}" + _EXPERT.sub(".experts.{expert}", rest)


def _counts(paths: Iterable[str]) -> dict[str, int]:
    """The number of layers of each stack, from the first number in every path."""
    counts: dict[str, int] = {}
    for path in paths:
        if hit := _INDEX.search(path):
            stack = path[: hit.start()]
            counts[stack] = max(counts.get(stack, 0), int(hit[1]) + 1)
    return counts


def _counted_by(
    family: Family, config: Mapping[str, Any], key: str, value: int, counts: Mapping[str, int]
) -> list[str]:
    """The stacks whose number of layers follows the key when it is changed."""
    other = _FEW if value > _FEW else value - 1 or 2
    try:
        model = family.build(changed(config, {key: other}, lists=True))
    except AdaptrixError:
        return []
    return [stack for stack, count in _counts(model.weights).items() if count == other and counts.get(stack) == value]


def _alike(paths: Iterable[str], stack: str, count: int) -> bool:
    """True where two or more modules in a row hold the same weights, as layers do and the parts of a head do not."""
    rests = [path.removeprefix(f"{stack}.").partition(".") for path in paths if path.startswith(f"{stack}.")]
    suffixes = {str(n): {rest for index, _, rest in rests if index == str(n)} for n in range(count)}
    return count > 1 and len({frozenset(found) for found in suffixes.values()}) == 1 and suffixes["0"] != {""}
