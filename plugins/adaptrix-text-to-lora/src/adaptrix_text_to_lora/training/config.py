"""The one YAML file that says how a hypernetwork is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from adaptrix import Problem, UsageError
from adaptrix.extend import yaml_file
from adaptrix_text_to_lora.encoders import Pooling
from adaptrix_text_to_lora.shape import Variant
from adaptrix_text_to_lora.targets import DEFAULT
from adaptrix_text_to_lora.training.loop import Recipe
from adaptrix_text_to_lora.training.reconstruction import Kind

_LARGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Config:
    """A training run. Every field is a key of the file; ``None`` is what the file may leave out.

    ``tasks``: a JSONL file of examples, for fine-tuning through the base; ``library``: one of adapters and their
    descriptions, for reconstruction. ``start``: a checkpoint to go on from, which then says what the hypernetwork is
    like. Paths are taken from the folder that the file is in.
    """

    base: str
    tasks: Path | None = None
    library: Path | None = None
    start: str | None = None
    # the hypernetwork
    variant: Variant = "L"
    targets: tuple[str, ...] = DEFAULT
    rank: int = 8
    latent: int = 128
    head: int = 512
    alpha: float = 16.0
    rslora: bool = True
    # what reads the descriptions; the width is that of ``hashed``
    encoder: str = "base"
    pooling: Pooling | None = None
    width: int = 1024
    # the steps
    steps: int = 10_000
    rate: float | None = None
    batch: int = 8
    rows: int = 1
    warmup: float = 0.2
    clip: float = 1.0
    decay: float = 0.01
    dropout: bool = True
    seed: int = 0
    save_every: int | None = None
    # the loss, of fine-tuning and of reconstruction
    smoothing: float = 0.1
    penalty: float = 1e-3
    length: int = 512
    loss: Kind = "factors"
    # where it is computed, and what the base computes in
    device: str | None = None
    dtype: str | None = None

    def recipe(self, usual: Recipe) -> Recipe:
        """The steps, at the usual rate where no other is asked for."""
        return Recipe(
            steps=self.steps,
            rate=usual.rate if self.rate is None else self.rate,
            tasks=self.batch,
            rows=self.rows,
            warmup=self.warmup,
            clip=self.clip,
            decay=self.decay,
            dropout=self.dropout,
            seed=self.seed,
        )


def read_config(path: Path) -> Config:
    """The config in a file. Raises :class:`AdaptrixError` with everything that is wrong with it."""
    given = yaml_file.read_mapping(path, "the settings of a training run", "config-value")
    problems = [*_unknown_keys(given, path), *_invalid(given, path), *_inconsistent(given, path)]
    if problems:
        raise UsageError(problems)
    values = dict(given)
    for key in ("tasks", "library"):
        if key in values:
            values[key] = path.parent / os.path.expanduser(values[key])
    for key in ("base", "start", "encoder"):
        if key in values:
            values[key] = _from(path.parent, values[key])
    if "targets" in values:
        values["targets"] = tuple(values["targets"])
    return Config(**values)


def _from(folder: Path, name: str) -> str:
    """A name that begins as a path does, taken from a folder; any other as it is."""
    return str(folder / name) if name.startswith(("./", "../")) else name


_WHOLE, _SHARE, _SIZE = "a whole number of at least 1", "a number from 0 to 1", "a number that is not negative"
Check = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return type(value) is int and 1 <= value < _LARGEST


def _number(value: Any, most: float = float("inf")) -> bool:
    return type(value) in (int, float) and isfinite(value) and 0 <= value <= most


def _share(value: Any) -> bool:
    return _number(value, 1.0)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_text, value)) and len(set(value)) == len(value)


def _one_of(kind: Any) -> tuple[Check, str]:
    return lambda value: value in get_args(kind), f"one of {', '.join(get_args(kind))}"


_CHECKS: Mapping[str, tuple[Check, str]] = {
    **dict.fromkeys(("base", "tasks", "library", "start", "encoder", "device", "dtype"), (_text, "a name or a path")),
    **dict.fromkeys(("rank", "head", "width", "steps", "batch", "rows", "save_every", "length"), (_count, _WHOLE)),
    **dict.fromkeys(("warmup", "smoothing"), (_share, _SHARE)),
    **dict.fromkeys(("decay", "penalty"), (_number, _SIZE)),
    **dict.fromkeys(("alpha", "rate", "clip"), (_positive, "a number above 0")),
    **dict.fromkeys(("rslora", "dropout"), (_flag, "true or false")),
    "latent": (lambda value: _count(value) and value % 4 == 0, "a multiple of 4"),
    "seed": (lambda value: value == 0 or _count(value), "a whole number of at least 0"),
    "targets": (_names, "a list of roles or modules, each once, such as [q, v]"),
    "variant": _one_of(Variant),
    "pooling": _one_of(Pooling),
    "loss": _one_of(Kind),
}


def _unknown_keys(given: Mapping[Any, Any], path: Path) -> Iterator[Problem]:
    known = [field.name for field in fields(Config)]
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            expected = f"such as {near[0]}" if near else f"one of {', '.join(known)}"
            yield Problem("config-value", f"{path} {ascii(key)[:60]}", "there is no such key", expected)


def _invalid(given: Mapping[Any, Any], path: Path) -> Iterator[Problem]:
    for key, (check, expected) in _CHECKS.items():
        if key in given and not check(given[key]):
            remedy = "Write it as 1.0e-3: YAML takes 1e-3 for text." if _exponent(given[key]) else ""
            yield Problem("config-value", f"{path} {key}", repr(given[key])[:80], expected, remedy)


def _exponent(value: object) -> bool:
    """True for a text that is a number as people write it, which YAML 1.1 does not take for one."""
    if not isinstance(value, str) or "e" not in value.lower():
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _inconsistent(given: Mapping[Any, Any], path: Path) -> Iterator[Problem]:
    """Keys that are missing, or that others leave no room for."""
    if "base" not in given:
        yield Problem("config-value", f"{path} base", "it is not there", "the model that the LoRAs are for")
    kinds = [key for key in ("tasks", "library") if key in given]
    if len(kinds) != 1:
        found = "both are there" if kinds else "neither is there"
        yield Problem(
            "config-value", f"{path} tasks, library", found, "tasks to fine-tune on, or a library to reconstruct"
        )
    idle = {"tasks": ("loss",), "library": ("rows", "smoothing", "penalty", "length", "dtype")}
    for kind in kinds if len(kinds) == 1 else ():
        for key in idle[kind]:
            if key in given:
                yield Problem(
                    "config-value", f"{path} {key}", f"it has no meaning where {kind} are given", "no such key"
                )
    if "start" in given:
        for key in ("variant", "targets", "rank", "latent", "head", "alpha", "rslora", "encoder", "width"):
            if key in given:
                yield Problem("config-value", f"{path} {key}", "the checkpoint of start says it", "no such key")
