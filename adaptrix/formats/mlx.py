"""mlx-lm's adapters: a folder with ``adapters.safetensors`` and ``adapter_config.json``.

A module's ``lora_a`` is ``[in, r]`` and its ``lora_b`` ``[r, out]``, both transposed to PEFT's, ``m`` DoRA's
magnitudes; those of stacked experts are ``[experts, r, in]`` and ``[experts, out, r]``. ΔW = scale · lora_bᵀ·lora_aᵀ
with one scale and one rank for the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.formats.spoken import Spoken, require_untied, spoken
from adaptrix.json_file import read_object
from adaptrix.planning.plan import Plan
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS, Tensor
from adaptrix.wording import some

NAME = "mlx"
WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
CARRIES = frozenset({"dora", "embeddings", "head", "experts"})
_LEAVES = ("lora_a", "lora_b", "m")
_KINDS = ("lora", "dora")
_DTYPES = ("F32", "F16", "BF16")


def detect(bundle: Bundle) -> bool:
    """True for a bundle with a file of mlx-lm's name, and none of PEFT's: those share the name of the config."""
    return WEIGHTS in bundle.files and not any(name.startswith("adapter_model.") for name in bundle.files)


def read(bundle: Bundle) -> Adapter:
    """The adapter in a bundle, with every problem found. Raises where a file cannot be read at all."""
    file = bundle.one(CONFIG)
    config = read_object(file, str(file))
    base = config.get("model")
    reading = _Reading(config)
    kind_problems = [*_kind_problems(config)]
    deltas = {} if kind_problems else reading.deltas(safetensors_file.read(bundle.one(WEIGHTS))[0])
    return Adapter(
        name=bundle.name,
        deltas=MappingProxyType(deltas),
        extras=MappingProxyType({}),
        provenance=Provenance(bundle.uri, NAME, bundle.commit, bundle.sha256, config),
        base=base if isinstance(base, str) and base else None,
        problems=(*kind_problems, *reading.problems),
        dialect=NAME,
    )


def _kind_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        found, remedy = "fine_tune_type is full: whole weights were trained, not an adapter", "Use it with mlx-lm."
        yield Problem("variant-unsupported", CONFIG, found, "lora or dora", remedy)
    elif kind not in _KINDS:
        yield Problem("config-value", f"{CONFIG} fine_tune_type", repr(kind)[:80], "lora or dora")


@dataclass
class _Reading:
    """The state of one reading: the config, and the problems so far."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.problems: list[Problem] = []

    def deltas(self, tensors: Mapping[str, Tensor]) -> dict[Target, Delta]:
        """One delta for every module with both factors."""
        scale = self._scale()
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf in _LEAVES and module:
                modules.setdefault(module, {})[leaf] = tensor
            else:
                found = "neither a factor nor a magnitude"
                self._add("tensor-unexpected", name, found, f"a name that ends in {', '.join(_LEAVES)}")
        self._check_layers(modules)
        return {
            Target(path): delta
            for path, group in modules.items()
            if (delta := self._delta(path, group, scale)) is not None
        }

    def _scale(self) -> float:
        given = self.config.get("lora_parameters")
        scale = given.get("scale") if isinstance(given, dict) else None
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not isfinite(scale):
            found = f"{scale!r}"[:80]
            self._add("config-value", f"{CONFIG} lora_parameters.scale", found, "a number: mlx-lm has no default")
            return 1.0
        return float(scale)

    def _delta(self, path: str, group: Mapping[str, Tensor], scale: float) -> LowRank | None:
        if not self._is_sound(path, group):
            return None
        a, b, m = group["lora_a"], group["lora_b"], group.get("m")
        if len(a.shape) == 3:
            experts, rank = a.shape[:2]
            B = Tensor.of(np.ascontiguousarray(b.numpy().transpose(1, 2, 0).reshape(b.shape[1], -1)))
            return LowRank(a.reshape(experts * rank, a.shape[2]), B, scale * rank, experts=experts)
        embedding = self._embedding(path)
        return LowRank(_turned(a), _turned(b), scale * a.shape[1], magnitude=m, embedding=embedding)

    def _embedding(self, path: str) -> bool:
        return path.rpartition(".")[2] in ("embed_tokens", "wte", "embed_in", "tok_embeddings")

    def _is_sound(self, path: str, group: Mapping[str, Tensor]) -> bool:
        before = len(self.problems)
        for leaf in ("lora_a", "lora_b"):
            if leaf not in group:
                remedy = "mlx-lm would leave it at its start."
                self._add("adapter-incomplete", f"{path}.{leaf}", "missing", "both factors", remedy)
        for leaf, tensor in group.items():
            dims = (1,) if leaf == "m" else (2, 3)
            if tensor.dtype not in FLOATS:
                self._add("dtype", f"{path}.{leaf}", tensor.dtype, f"one of {', '.join(FLOATS)}")
            if len(tensor.shape) not in dims or 0 in tensor.shape:
                expected = "[out]" if leaf == "m" else "[in, r] and [r, out], or three dimensions for experts"
                self._add("shape", f"{path}.{leaf}", f"shape {list(tensor.shape)}", expected)
        if len(self.problems) == before:
            self._check_pair(path, group)
        return len(self.problems) == before

    def _check_pair(self, path: str, group: Mapping[str, Tensor]) -> None:
        a, b = group["lora_a"].shape, group["lora_b"].shape
        stacked = len(a) == 3
        agree = len(a) == len(b) and ((a[0], a[1]) == (b[0], b[2]) if stacked else a[1] == b[0])
        dora = self.config.get("fine_tune_type") == "dora"
        if not agree:
            expected = "[experts, r, in] and [experts, out, r]" if stacked else "[in, r] and [r, out]"
            self._add("rank", path, f"lora_a {list(a)}, lora_b {list(b)}", expected)
        elif ("m" in group) != dora:
            found = f"{'a' if 'm' in group else 'no'} magnitude"
            self._add("adapter-incomplete", path, found, f"as fine_tune_type = {'dora' if dora else 'lora'} has it")

    def _check_layers(self, modules: Mapping[str, object]) -> None:
        """Adds a problem where more layers have factors than the config says; mlx-lm refuses the others."""
        count, given = self.config.get("num_layers"), self.config.get("lora_parameters")
        keys = given.get("keys") if isinstance(given, dict) else None
        whole = {key for key in keys if isinstance(key, str)} if isinstance(keys, list) else set()
        if not isinstance(count, int) or isinstance(count, bool) or count <= 0:
            return
        layers = {number for path in modules if path not in whole and (number := _layer(path)) is not None}
        if len(layers) > count:
            found = f"num_layers is {count}, and {len(layers)} layers have factors"
            self._add("config-value", f"{CONFIG} num_layers", found, "the number of layers, counted from the last")

    def _add(self, code: str, where: str, found: str, expected: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(code, where, found, expected, remedy))


def _layer(path: str) -> int | None:
    return next((int(step) for step in path.split(".") if step.isdecimal() and len(step) < 7), None)


def _turned(tensor: Tensor) -> Tensor:
    return Tensor.of(np.ascontiguousarray(tensor.numpy().T))


def write(plan: Plan, path: Path) -> None:
    """Writes every delta of a complete plan into the new folder ``path``.

    Raises :class:`RefusedError` for sites that mlx-lm has no name for, for DoRA on embeddings or experts, and for an
    embedding that is the base's head too.
    """
    found = spoken(plan, NAME)
    require_untied(plan, found, "mlx-lm would change with it")
    _require_plain_dora(found)
    tensors = {name: tensor for each in found for name, tensor in _tensors(each)}
    _require_readable(tensors)
    path.mkdir()
    safetensors_file.write(path / WEIGHTS, tensors, {"format": "mlx"})
    text = json.dumps(_config(plan, found), indent=4, sort_keys=True, ensure_ascii=False)
    (path / CONFIG).write_text(text + "\n", "utf-8")


def _require_readable(tensors: Mapping[str, Tensor]) -> None:
    """Raises :class:`RefusedError` for dtypes that mlx reads as another, or not at all."""
    odd = {name: each.dtype for name, each in tensors.items() if each.dtype not in _DTYPES}
    if odd:
        found = f"{', '.join(sorted(set(odd.values())))} ({some(list(odd), 3)})"
        expected, remedy = f"one of {', '.join(_DTYPES)}", "Add --dtype fp32 or bf16."
        raise RefusedError(Problem("dtype", "to mlx", found, expected, remedy))


def _require_plain_dora(found: list[Spoken]) -> None:
    problems = []
    for each in found:
        if each.deltas[0].magnitude is not None and (each.embedding or each.stacked):
            kind = "embedding" if each.embedding else "stack of experts"
            said = f"DoRA on an {kind}, which mlx-lm computes otherwise or not at all"
            problems.append(Problem("format-loss", each.name, said, "a LoRA there", _OTHERWISE))
    if problems:
        raise RefusedError(problems)


_OTHERWISE = "Merge the adapter into its base, and convert that with mlx_lm.convert."


def _tensors(each: Spoken) -> Iterator[tuple[str, Tensor]]:
    for leaf, factor in zip(("lora_a", "lora_b"), each.factors(), strict=True):
        yield f"{each.name}.{leaf}", factor if each.stacked else _turned(factor)
    if (magnitude := each.deltas[0].magnitude) is not None:
        yield f"{each.name}.m", magnitude


def _config(plan: Plan, found: list[Spoken]) -> dict[str, Any]:
    """A config that names every module by its full path, so that ``num_layers`` leaves none out."""
    first = found[0].deltas[0]
    adapter = plan.bound.adapter
    kept = dict(adapter.provenance.config) if adapter.provenance.format == NAME else {"model": adapter.base}
    parameters = {"rank": first.rank, "scale": first.scale, "dropout": 0.0, "keys": [each.name for each in found]}
    kind = "lora" if first.magnitude is None else "dora"
    return kept | {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": parameters}
