"""The one file that says how an expert is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from adaptrix import Problem, UsageError
from adaptrix.extend import refuse, yaml_file
from adaptrix_transformer2.texts import REWARDS
from adaptrix_transformer2.train.settings import Policy, TrainingSettings, invalid_settings

Method = Literal["sft", "reinforce", "faithful"]
METHODS: tuple[Method, ...] = ("sft", "reinforce", "faithful")

_TEXTS = ("base", "examples", "validation", "out", "name", "method", "reward", "layers", "device", "dtype", "history")
_NEEDED = ("base", "examples")
_SETTINGS = tuple(field.name for field in fields(TrainingSettings))
_POLICY = tuple(field.name for field in fields(Policy))
_FLOATS = ("rate", "clip", "temperature", "kl")


@dataclass(frozen=True)
class Config:
    """A training as its file describes it. ``policy`` is there for methods that train on rewards.

    ``base``: a folder or OWNER/NAME; ``examples``, ``validation``: files of JSON lines; ``out``: the injection file;
    ``reward``: what an answer is worth; ``chat``: prompts are turns of the tokenizer's template; ``layers``: whose
    MLPs the expert changes, such as ``4-7``; ``history``: a JSON file for the figures of every step.
    """

    base: str
    examples: Path
    settings: TrainingSettings
    policy: Policy | None
    validation: Path | None = None
    out: str | None = None
    name: str = "expert"
    method: Method = "sft"
    reward: str = "exact"
    chat: bool = False
    layers: tuple[int, ...] | None = None
    device: str | None = None
    dtype: str | None = None
    history: Path | None = None


def read_config(path: Path) -> Config:
    """The config in a YAML file; what it does not say is as :class:`TrainingSettings` and :class:`Policy` have it.

    Raises :class:`RefusedError` for a file that is none, :class:`UsageError` with every key that is unknown, missing,
    or says what cannot be.
    """
    given = _mapping(path)
    method: Method = given.get("method", "sft")
    numbers = {key: _number(key, value) for key, value in given.items() if key in (*_SETTINGS, *_POLICY)}
    settings, policy = _training_settings(numbers, method), _policy(numbers, method)
    if problems := [*_problems(given, str(path)), *invalid_settings(settings, policy)]:
        raise UsageError(problems)
    plain = {key: given[key] for key in ("out", "name", "reward", "chat", "device", "dtype") if key in given}
    paths: dict[str, Any] = {key: Path(given[key]) for key in ("validation", "history") if key in given}
    layers = _layers(given["layers"]) if given.get("layers", "all") != "all" else None
    return Config(
        given["base"], Path(given["examples"]), settings, policy, method=method, layers=layers, **plain, **paths
    )


def _training_settings(numbers: Mapping[str, Any], method: Method) -> TrainingSettings:
    own = {key: value for key, value in numbers.items() if key in _SETTINGS}
    return TrainingSettings.published(**own) if method == "faithful" else TrainingSettings(**own)


def _policy(numbers: Mapping[str, Any], method: Method) -> Policy | None:
    own = {key: value for key, value in numbers.items() if key in _POLICY}
    if method == "sft":
        return None
    return Policy.published(**own) if method == "faithful" else Policy(**own)


def _mapping(path: Path) -> dict[str, Any]:
    """The mapping in a file. Raises :class:`AdaptrixError` unless it is YAML of keys and plain values."""
    expected = "a YAML file of keys and values"
    if not path.is_file():
        found = "this is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(Problem("config-value", str(path), found, expected))
    value = yaml_file.read_mapping(path, expected, "config-value")
    if not all(isinstance(key, str) for key in value):
        raise refuse("config-value", path, "it has keys that are no text", expected)
    return {str(key): one for key, one in value.items() if one is not None}


def _problems(given: Mapping[str, Any], where: str) -> Iterator[Problem]:
    known = (*_TEXTS, "chat", *_SETTINGS, *_POLICY)
    for key in sorted(given.keys() - set(known)):
        near = get_close_matches(key, known, 1)
        yield Problem(
            "config-value", f"{where} {key}", "no such key", f"{near[0]}?" if near else f"one of {', '.join(known)}"
        )
    for key in _NEEDED:
        if key not in given:
            yield Problem("config-value", where, f"it does not say {key}", "at least base and examples")
    for key in _TEXTS:
        if key in given and key != "layers" and (not isinstance(given[key], str) or not given[key]):
            yield Problem("config-value", f"{where} {key}", repr(given[key])[:80], "a text")
    yield from _choices(given, where)
    if "layers" in given and not _are_layers(given["layers"]):
        yield Problem("config-value", f"{where} layers", repr(given["layers"])[:80], "all, or layers such as 4-7,9")


def _choices(given: Mapping[str, Any], where: str) -> Iterator[Problem]:
    method = given.get("method", "sft")
    if method not in METHODS:
        yield Problem("config-value", f"{where} method", repr(method)[:80], ", ".join(METHODS))
    if given.get("reward", "exact") not in tuple(REWARDS):  # it may be a list, which no mapping looks up
        yield Problem("config-value", f"{where} reward", repr(given["reward"])[:80], ", ".join(REWARDS))
    if not isinstance(given.get("chat", False), bool):
        yield Problem("config-value", f"{where} chat", repr(given["chat"])[:80], "true or false")
    for key in ("reward", *_POLICY):
        if method == "sft" and key in given:
            yield Problem("config-value", f"{where} {key}", "it is for training on rewards", remedy="Leave it out.")


def _number(key: str, value: Any) -> Any:
    """A number that YAML took for text: it knows 2.0e-3 and not 2e-3."""
    if key not in _FLOATS or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _are_layers(value: object) -> bool:
    if type(value) is int:
        return value >= 0
    if value == "all":
        return True
    parts = value.split(",") if isinstance(value, str) else [""]
    ends = [part.split("-") for part in parts]
    plain = all(len(part) <= 2 and all(end.isdecimal() and len(end) < 6 for end in part) for part in ends)
    return plain and all(int(part[0]) <= int(part[-1]) for part in ends)


def _layers(value: str | int) -> tuple[int, ...]:
    """The layers of ``4-7,9``."""
    ends = [[int(end) for end in part.split("-")] for part in str(value).split(",")]
    return tuple(sorted({layer for part in ends for layer in range(part[0], part[-1] + 1)}))
