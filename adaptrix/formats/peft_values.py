"""The values in a PEFT config: of what type and size each may be, and what a value that is neither counts as."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from adaptrix.architecture.dims import DEEPEST
from adaptrix.errors import Problem, few
from adaptrix.formats.peft_config_keys import TYPES, keys_of
from adaptrix.formats.peft_lengths import MOST_PARTS

_LONGEST_NAME = 4096


def invalid(key: str, found: str, expected: str, remedy: str = "", code: str = "config-value") -> Problem:
    """The problem of a key's value."""
    return Problem(code, f"adapter_config.json {key}", found, expected, remedy)


def value_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each value that is not of its key's type or size."""
    keys = keys_of(raw)
    if not is_rank(raw.get(keys.rank, 8)):
        yield invalid(keys.rank, repr(raw[keys.rank])[:80], "a whole number from 1 to 1048576")
    if not is_alpha(raw.get(keys.alpha, 8)):
        yield invalid(keys.alpha, repr(raw[keys.alpha])[:80], "a number below 1e30")
    base = raw.get("base_model_name_or_path")
    if base is not None and not (isinstance(base, str) and len(base) <= _LONGEST_NAME and base.isprintable()):
        yield invalid("base_model_name_or_path", repr(base)[:80], "the name of a model, printable, or null")
    masks, ranks = (_is_mask, "lists of true and false"), (is_rank, "whole numbers from 1 to 1048576")
    for key, (valid, what) in (
        ("rank_pattern", masks if keys.masks else ranks),
        ("alpha_pattern", (is_alpha, "numbers below 1e30")),
    ):
        table = raw.get(key, {})
        if keys.masks and table is None:  # nothing was pruned
            continue
        if not isinstance(table, dict):
            yield invalid(key, json.dumps(table)[:80], f"an object from module names to {what}", 'Write {} for "none".')
        else:
            wrong = (invalid(f"{key}[{name!r}]", repr(v)[:80], what) for name, v in table.items() if not valid(v))
            yield from few(wrong, f"adapter_config.json {key}")
    for key in ("target_modules", "modules_to_save", "target_parameters", "exclude_modules", "feedforward_modules"):
        if not _is_names(raw.get(key), allow_text=key not in ("modules_to_save", "target_parameters")):
            yield invalid(key, json.dumps(raw[key])[:200], "a list of names")
    for key in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"):
        if not isinstance(raw.get(key), bool | None):
            yield invalid(key, repr(raw[key])[:80], "true or false")
    layers = raw.get("layers_to_transform")
    if not (layers is None or type(layers) is int or _is_list(layers, int)):
        yield invalid("layers_to_transform", json.dumps(layers)[:200], "a layer or a list of them")
    for key, fits, what in (
        ("alora_invocation_tokens", _is_sequence, "a list of token numbers of at least 0"),
        ("layer_replication", _is_ranges, "a list of pairs [first, last + 1] of layers"),
        ("layers_pattern", lambda value: _is_names(value, allow_text=True), "a name or a list of names"),
        ("trainable_token_indices", _is_tokens, "a list of token numbers, or an object from embeddings to such lists"),
    ):
        if not (raw.get(key) is None or fits(raw[key])):
            yield invalid(key, json.dumps(raw[key])[:200], what)
    bias = str(raw.get("bias") or "none")
    if bias not in ("none", "all", "lora_only") and (keys is TYPES["LORA"] or not bias.endswith("_only")):
        yield invalid("bias", repr(raw["bias"])[:80], '"none", "all" or "lora_only"')
    enable = raw.get("enable_lora")
    if enable is not None and not (enable and _is_list(enable, bool)):
        yield invalid("enable_lora", json.dumps(enable)[:200], "a list of true and false, or null")


def number_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for NaN and Inf, which Python reads and writes, and which JSON does not have."""
    for key, value in raw.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            yield invalid(key, f"{value!r}"[:200], "finite numbers")


def clean(table: Any, valid: Any) -> Mapping[str, Any]:
    """The entries of a table that are valid; none where it is no table."""
    return MappingProxyType({k: v for k, v in table.items() if valid(v)} if isinstance(table, dict) else {})


def enabled(value: Any) -> tuple[bool, ...]:
    """The value of ``enable_lora``; () where it cannot be used."""
    return tuple(value) if _is_list(value, bool) and len(value) <= MOST_PARTS else ()


def rank(value: Any) -> int:
    """A valid rank, or 0."""
    return int(value) if is_rank(value) else 0


def is_rank(value: Any) -> bool:
    """True for a rank that a matrix may have."""
    return type(value) is int and 1 <= value <= 1 << 20


def _is_mask(value: Any) -> bool:
    """True for what AdaLoRA's rank_pattern has of a module: which of its first ranks are kept."""
    return _is_list(value, bool)


def is_alpha(value: Any) -> bool:
    """True for a finite number of a size that floats can hold."""
    return type(value) in (int, float) and abs(value) < 1e30  # neither NaN nor a whole number of 400 digits


def _is_names(value: Any, *, allow_text: bool) -> bool:
    return value is None or (allow_text and isinstance(value, str)) or _is_list(value, str)


def _is_list(value: Any, of: type) -> bool:
    return isinstance(value, list) and all(type(item) is of for item in value)


def _is_ranges(value: Any) -> bool:
    """Pairs [first, last + 1] of layers, in all no more than a model may have."""
    pairs = isinstance(value, list) and all(_is_list(pair, int) and len(pair) == 2 for pair in value)
    return pairs and all(0 <= start < stop for start, stop in value) and sum(b - a for a, b in value) <= DEEPEST


def _is_sequence(value: Any) -> bool:
    return _is_list(value, int) and all(0 <= token < 1 << 62 for token in value)


def _is_tokens(value: Any) -> bool:
    return _is_list(value, int) or (isinstance(value, dict) and all(_is_list(rows, int) for rows in value.values()))
