"""The lengths of lists and objects in a PEFT config: none may have more entries than any model has use for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from adaptrix.architecture.dims import DEEPEST
from adaptrix.errors import Problem

#: entries of a list or an object: the largest models have some 50,000 modules
_MOST_NAMES = 100_000
#: a vocabulary has no more tokens, and a model no more places for its layers and no more parts of a fused weight
_MOST_TOKENS, _MOST_PATTERNS, MOST_PARTS = 1 << 20, 100, 64
_MOST = MappingProxyType(
    {
        "trainable_token_indices": _MOST_TOKENS,
        "layers_pattern": _MOST_PATTERNS,
        "layers_to_transform": DEEPEST,
        "layer_replication": DEEPEST,
        "enable_lora": MOST_PARTS,
    }
)


def length_problems(raw: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
    """The key and the problem of every list or object with more entries than any model has use for."""
    for key, value in raw.items():
        found, most = _entries(value), _MOST.get(key, _MOST_NAMES)
        if found > most:
            remedy = "No model has so many: restore the config."
            where = f"adapter_config.json {key}"
            yield key, Problem("config-value", where, f"{found} entries", f"at most {most}", remedy)


def _entries(value: Any) -> int:
    """The number of entries of a list or an object, or of the longest in it."""
    if not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max([len(value), *(len(one) for one in inner if isinstance(one, (list, dict)))])
