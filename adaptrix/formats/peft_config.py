"""PEFT's adapter_config.json: read strictly, with every problem at once, and its rules for each module."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from adaptrix.architecture.name_lists import NameList, by_owner
from adaptrix.architecture.patterns import Budget, Patterns, fullmatch, tails
from adaptrix.errors import Problem, few
from adaptrix.formats.peft_config_keys import keys_of, unknown_keys
from adaptrix.formats.peft_lengths import length_problems
from adaptrix.formats.peft_training import variant_problems
from adaptrix.formats.peft_types import type_problems
from adaptrix.formats.peft_values import (
    clean,
    enabled,
    invalid,
    is_alpha,
    is_rank,
    number_problems,
    rank,
    value_problems,
)

CONFIG_NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"
_LAYER = re.compile(r"\.(\d{1,6})\.")
_PLAIN = re.compile(r"[\w.-]+")

#: the heads that peft saves for a task, whether modules_to_save lists them or not
TASK_HEADS = MappingProxyType(
    {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
)
HEADS = frozenset(head for heads in TASK_HEADS.values() for head in heads)

#: initialisations that change the base weight: the saved factors are then no delta on the published base
_RESIDUAL_STARTS = ("pissa", "olora", "corda", "lora_ga", "loftq")

#: keys that make an adapter act under a condition, which is evaluated at run time
_CONDITIONS = {
    "alora_invocation_tokens": "an activated LoRA: it acts in rows that hold its invocation tokens, from there on",
    "arrow_config": "an Arrow router: it chooses among adapters token by token, as peft does at run time",
}


@dataclass(frozen=True)
class PeftConfig:
    """The part of a LoRA config that determines what its tensors mean.

    - ``raw``: the whole config, verbatim.
    - ``rank``: of most modules; 0 where the config has no valid one, and then the tensors decide.
    - ``alpha``: of most modules. ``rslora``: the scale is alpha / √rank, not alpha / rank.
    - ``rank_pattern``, ``alpha_pattern``: exceptions, by module name or pattern.
    - ``enabled``: the legacy ``enable_lora``, which equal parts of a fused weight have a LoRA.
    - ``unusable``: keys whose values are not of their type.
    - ``budget``: the seconds that matching may take.
    """

    raw: Mapping[str, Any]
    rank: int = 8
    alpha: float = 8.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    enabled: tuple[bool, ...] = ()
    unusable: frozenset[str] = frozenset()
    budget: Budget = field(default_factory=Budget)

    def get(self, key: str) -> Any:
        """The value of a key; None where it is missing or not of its type."""
        return None if key in self.unusable else self.raw.get(key)

    def rank_of(self, path: str) -> int:
        """The rank of a module or parameter. Raises :class:`RefusedError` for a pattern that cannot be matched."""
        key = self._ranks.first(path)
        return self.rank if key is None else self.rank_pattern[key]

    def alpha_of(self, path: str) -> float:
        """The alpha of a module or parameter, as :meth:`rank_of`."""
        key = self._alphas.first(path)
        return self.alpha if key is None else self.alpha_pattern[key]

    @cached_property
    def _listed(self) -> Mapping[str, frozenset[str]]:
        """The names in each list of modules; sets, since there may be as many as modules."""
        keys = ("target_modules", "exclude_modules")
        return {
            key: frozenset(map(str, names)) for key in keys if isinstance(names := self.get(key) or (), list | tuple)
        }

    @cached_property
    def _ranks(self) -> Patterns:
        return Patterns(self.rank_pattern, f"{CONFIG_NAME} rank_pattern", self.budget)

    @cached_property
    def _alphas(self) -> Patterns:
        return Patterns(self.alpha_pattern, f"{CONFIG_NAME} alpha_pattern", self.budget)

    def names(self, key: str, path: str) -> bool:
        """True where ``target_modules`` or ``exclude_modules`` names a module, by a regex or an ending of its path."""
        pattern = self.get(key)
        if isinstance(pattern, str):
            return fullmatch(pattern, path, f"{CONFIG_NAME} {key}", self.budget)
        return not self._listed[key].isdisjoint(tails(path))

    def targets(self, path: str) -> bool:
        """True where peft would put an adapter on a module of this path, as far as the path shows."""
        if self.get("exclude_modules") and self.names("exclude_modules", path):
            return False
        if self.get("target_modules") in (None, ALL_LINEAR):
            return True
        return self.names("target_modules", path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        """True where ``layers_to_transform`` has the module's layer: the first number in its path, or the first
        after one of ``layers_pattern``."""
        layers = self.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        targets = self.get("target_modules")
        if isinstance(targets, str) or path in self._listed["target_modules"]:
            return True
        numbers = self._layers
        patterns = self.get("layers_pattern") or []
        if patterns:
            return any(self._below(p, path, numbers) for p in ([patterns] if isinstance(patterns, str) else patterns))
        found = _LAYER.search(path)
        return found is not None and int(found[1]) in numbers

    @cached_property
    def _layers(self) -> frozenset[int]:
        layers = self.get("layers_to_transform")
        return frozenset([layers] if isinstance(layers, int) else layers or ())

    def _below(self, pattern: str, path: str, layers: frozenset[int]) -> bool:
        """True where one of the layers follows ``pattern``, a name or a regex, in the path."""
        if _PLAIN.fullmatch(pattern):
            found = re.search(rf"(?:^|\.){re.escape(pattern)}\.(\d{{1,6}})\.", path)
            return found is not None and int(found[1]) in layers
        numbers = "|".join(map(str, sorted(layers)))
        return fullmatch(rf"(?:.*?\.)?{pattern}\.(?:{numbers})\..*", path, f"{CONFIG_NAME} layers_pattern", self.budget)

    @property
    def saves_biases(self) -> bool:
        """True where biases of the base were trained and saved."""
        return str(self.get("bias") or "none").lower() != "none"

    def saves(self, path: str) -> bool:
        """True for a module that is saved whole, or inside one: peft puts no adapter there."""
        return any(self.saved_modules.inside(path))

    @cached_property
    def saved_modules(self) -> NameList:
        """Names of modules saved whole: those listed, and the heads that peft adds for a task."""
        listed = tuple(self.get("modules_to_save") or ())
        return NameList(listed + TASK_HEADS.get(str(self.get("task_type")), ()))

    @cached_property
    def parameters(self) -> NameList:
        """The parameters of ``target_parameters``."""
        return NameList(self.get("target_parameters") or ())

    @cached_property
    def parameters_by_owner(self) -> Mapping[str, list[str]]:
        """The same by the module that has them; "" for bare names."""
        return by_owner(self.parameters.names)


def parse(raw: Mapping[str, Any]) -> tuple[PeftConfig, tuple[Problem, ...]]:
    """The config and all its problems; a value that cannot be used is replaced by one that causes no others.

    Of a type that is not read, that alone is said: its keys have other meanings.
    """
    if other := list(type_problems(raw.get("peft_type"), f"{CONFIG_NAME} peft_type")):
        return PeftConfig(MappingProxyType(dict(raw))), tuple(other)
    keys = keys_of(raw)
    values = list({problem.where: problem for problem in _all_value_problems(raw)}.values())
    problems = [*values, *_unsupported(raw), *few(unknown_keys(raw, CONFIG_NAME), CONFIG_NAME)]
    return (
        PeftConfig(
            raw=MappingProxyType(dict(raw)),
            rank=rank(raw.get(keys.rank, keys.usual)),
            alpha=float(raw[keys.alpha]) if is_alpha(raw.get(keys.alpha)) else keys.usual_alpha,
            rslora=raw.get("use_rslora") is True,
            rank_pattern=clean(raw.get("rank_pattern"), is_rank),
            alpha_pattern=clean(raw.get("alpha_pattern"), is_alpha),
            enabled=enabled(raw.get("enable_lora")),
            unusable=frozenset(problem.where.removeprefix(f"{CONFIG_NAME} ") for problem in values),
        ),
        tuple(problems),
    )


def _all_value_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems of values; of one that is too long, that alone."""
    long = dict(length_problems(raw))
    short = {key: value for key, value in raw.items() if key not in long}
    known = {key: value for key, value in short.items() if key in keys_of(raw).known}
    yield from (*long.values(), *value_problems(known), *number_problems(known))
    yield from few(number_problems({key: short[key] for key in short.keys() - known.keys()}), CONFIG_NAME)


def _unsupported(raw: Mapping[str, Any]) -> Iterator[Problem]:
    start = str(raw.get("init_lora_weights", "")).lower()
    if start.startswith(_RESIDUAL_STARTS):
        yield invalid(
            "init_lora_weights",
            f"{start!r}: the factors belong to a residual of the base, not to the base itself",
            "factors of the delta",
            "save_pretrained(…, path_initial_model_for_weight_conversion=…) writes it as a plain LoRA.",
            "variant-unsupported",
        )
    for key in ("use_qalora", "use_bdlora", "kasa_config", "megatron_config"):
        if raw.get(key):
            yield invalid(key, json.dumps(raw[key])[:80], "unset", "Merge it with peft instead.", "variant-unsupported")
    yield from variant_problems(raw)
    yield from condition_problems(raw)


def condition_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """A warning for each condition under which an adapter acts."""
    for key, found in _CONDITIONS.items():
        if config.get(key):
            remedy = "Conversion keeps the key; tools that ignore it will apply the adapter to every token."
            yield Problem("conditional", f"{CONFIG_NAME} {key}", found, remedy=remedy, severity="warning")
