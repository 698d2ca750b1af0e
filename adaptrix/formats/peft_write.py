"""The writer of PEFT checkpoints: folders that peft loads.

Deltas that were read from a PEFT checkpoint and are unaltered keep its config; altered or generated ones get
a config that lists every module, rank and alpha.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptrix.adapter import Target
from adaptrix.architecture import Site
from adaptrix.architecture.layout import RowIndex, role_rows
from adaptrix.architecture.patterns import suffix_match
from adaptrix.delta import Delta, LowRank, Parametrised, Scale, fuse, of_class, require_low_rank, straightened
from adaptrix.errors import refuse
from adaptrix.formats import safetensors_file
from adaptrix.formats.peft_config import CONFIG_NAME
from adaptrix.formats.peft_ia3 import described
from adaptrix.formats.peft_keys import PREFIX, SHARED
from adaptrix.formats.peft_promises import BASE_LAYER
from adaptrix.formats.peft_read import EXPERT_ORDER, WEIGHTS
from adaptrix.planning.features import CONDITIONS
from adaptrix.planning.plan import Plan
from adaptrix.tensor import Tensor

#: keys that determine the modules and their ranks and scales: written again for altered deltas
_DERIVED = """r lora_alpha use_rslora rank_pattern alpha_pattern target_modules target_parameters exclude_modules
    layers_to_transform layers_pattern enable_lora merge_weights init_lora_weights use_dora lora_bias"""
#: the first peft that writes stacked experts as they are written here
STACKED_SINCE = "0.19.1"


def write(plan: Plan, path: Path) -> None:
    """Writes every delta of a complete plan into the new folder ``path``: as it came from a PEFT checkpoint, else as a
    LoRA. Raises :class:`RefusedError` for deltas that are none."""
    as_read: dict[Site, Parametrised | Scale] = {**of_class(plan.bound.deltas, Scale)}
    as_read |= {} if _rewritten(plan) else of_class(plan.bound.deltas, Parametrised)
    others = {site: delta for site, delta in plan.bound.deltas.items() if site not in as_read}
    deltas = require_low_rank(others, plan.bound.adapter.name, "a PEFT checkpoint")
    modules = _modules(plan, deltas)
    raw = plan.bound.adapter.provenance.config
    own = {plan.bound.targets[site].path: delta for site, delta in as_read.items()}
    config = _described(plan, modules, own) if _rewritten(plan) else dict(raw)
    if any(delta.transposed for delta in deltas.values()):
        config["peft_version"] = STACKED_SINCE
    path.mkdir()
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (path / CONFIG_NAME).write_text(text + "\n", "utf-8")
    safetensors_file.write(path / WEIGHTS[0], _tensors(plan, modules, own), {"format": "pt"})


def _rewritten(plan: Plan) -> bool:
    adapter = plan.bound.adapter
    sliced = any(target.slot is not None for target in plan.bound.targets.values())
    return adapter.altered or adapter.provenance.format != "peft" or sliced


def _modules(plan: Plan, deltas: Mapping[Site, LowRank]) -> dict[str, LowRank]:
    """One delta a module: parts of a fused weight become one, stacked experts are laid out as in current peft."""
    whole: dict[str, LowRank] = {}
    parts: dict[str, dict[Target, LowRank]] = {}
    rows: dict[str, Mapping[str, RowIndex]] = {}
    for site, delta in deltas.items():
        target = plan.bound.targets[site]
        if target.slot is None:
            whole[target.path] = straightened(delta)
            continue
        parts.setdefault(target.path, {})[target] = delta
        role = plan.bound.architecture.roles[site.role]
        known = role_rows(role, plan.bound.dims) if site.part in role.parts else None
        rows[target.path] = known or _equal(target, delta)
    for path, group in parts.items():
        names = list(rows[path])
        whole[path] = fuse({names[t.slot or 0]: d for t, d in sorted(group.items())}, rows[path])
    return whole


def _equal(target: Target, delta: LowRank) -> dict[str, RowIndex]:
    """The rows of equal parts, one after another, as in MergedLinear."""
    size = delta.B.shape[0]
    return {f"slot{i}": np.arange(i * size, (i + 1) * size) for i in range(target.slots or 0)}


def _tensors(plan: Plan, modules: Mapping[str, LowRank], own: Mapping[str, Delta]) -> dict[str, Tensor]:
    """The tensors by name; ``own``: the deltas that keep the tensors of another type, by module."""
    named = {
        f"{PREFIX}{path}.{name}": tensor for path, delta in own.items() for name, tensor in delta.tensors().items()
    }
    wrapped = Counter(path.rpartition(".")[0] for path, delta in modules.items() if delta.experts is not None)
    for path, delta in modules.items():
        stem = f"{PREFIX}{_inside(_module_path(path, modules), wrapped)}"
        word = "lora_embedding_" if delta.embedding else "lora_"
        leaf = "" if delta.embedding else ".weight"
        named |= {f"{stem}.{word}A{leaf}": delta.A, f"{stem}.{word}B{leaf}": delta.B}
        if delta.bias is not None:
            named[f"{stem}.lora_B.bias"] = delta.bias
        if delta.magnitude is not None:
            named[f"{stem}.lora_magnitude_vector"] = delta.magnitude
    shared = {key: extra.tensor for key, extra in plan.bound.adapter.extras.items() if extra.kind == "shared"}
    named |= {f"{SHARED}{key}": tensor for key, tensor in shared.items() if own}
    extras = [(key, extra) for key, extra in plan.bound.adapter.extras.items() if key not in shared]
    return named | {
        f"{PREFIX}{_inside(_extra_key(key, modules.keys() | own.keys()), wrapped)}": extra.tensor
        for key, extra in extras
    }


def _module_path(path: str, modules: Mapping[str, LowRank]) -> str:
    """The module that peft attaches a delta to: for stacked experts the owner of their parameter, one
    ``base_layer`` deeper for each parameter of the same owner that is wrapped after it."""
    if modules[path].experts is None:
        return path
    owner, _, name = path.rpartition(".")
    later = EXPERT_ORDER[EXPERT_ORDER.index(name) + 1 :] if name in EXPERT_ORDER else ()
    return owner + BASE_LAYER * sum(f"{owner}.{other}" in modules for other in later)


def _inside(path: str, wrapped: Mapping[str, int]) -> str:
    """The path inside modules with wrapped parameters: with one ``base_layer`` for each wrapper."""
    steps = path.split(".")
    for end in range(len(steps) - 1, 0, -1):
        if (owner := ".".join(steps[:end])) in wrapped and steps[end] != BASE_LAYER[1:]:
            steps[end:end] = [BASE_LAYER[1:]] * wrapped[owner]
    return ".".join(steps)


def _extra_key(key: str, modules: Collection[str]) -> str:
    """The key of an extra in a model with the deltas: under ``base_layer`` in a module with a delta.

    It was read under another key where peft before 0.7 wrote it, or where the delta of its module was pruned.
    """
    module, _, leaf = key.rpartition(".")
    plain = module.removesuffix(BASE_LAYER)
    if leaf == "bias" or plain != module:
        return f"{plain}{BASE_LAYER if plain in modules else ''}.{leaf}"
    return key


def _described(plan: Plan, modules: Mapping[str, LowRank], own: Mapping[str, Delta]) -> dict[str, Any]:
    """A config that gives every module its rank and scale by its full path."""
    adapter = plan.bound.adapter
    config = adapter.provenance.config
    raw = config if adapter.provenance.format == "peft" else {key: config[key] for key in CONDITIONS if config.get(key)}
    if scales := of_class(own, Scale):
        if modules:
            odd, expected = ", ".join(list(modules)[:3]), "deltas of one PEFT type"
            raise refuse("kind-unsupported", adapter.name, f"LoRA ({odd}) beside (IA)³", expected)
        return described(raw, adapter.base, scales)
    parameters = _parameters(raw, modules)
    rslora = all(delta.rslora for delta in modules.values())
    named = {parameters.get(path, path): delta for path, delta in modules.items()}
    ranks = {name: delta.rank for name, delta in named.items()}
    alphas = {name: _alpha(delta, rslora) for name, delta in named.items()}
    rank, alpha = _most(ranks), _most(alphas)
    kept = {key: value for key, value in raw.items() if key not in _DERIVED.split()}
    if any(delta.embedding for delta in modules.values()):  # an altered head no longer shares the embedding's factors
        kept.pop("ensure_weight_tying", None)
    return {"base_model_name_or_path": adapter.base} | kept | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {name: a for name, a in sorted(alphas.items()) if a != alpha},
        "target_modules": sorted(modules.keys() - parameters.keys()),
        "target_parameters": sorted(parameters.values()) or None,
        "use_rslora": rslora,
        "use_dora": any(delta.magnitude is not None for delta in modules.values()),
        "lora_bias": any(delta.bias is not None for delta in modules.values()),
        "init_lora_weights": True,
    }  # fmt: skip


def _parameters(raw: Mapping[str, Any], modules: Mapping[str, LowRank]) -> dict[str, str]:
    """The paths that are parameters to peft: stacked experts, and weights that the config lists as such."""
    names = raw.get("target_parameters") or ()
    found = {path: path for path, delta in modules.items() if delta.experts is not None}
    for path in modules.keys() - found.keys():
        if any("." in name and suffix_match(name, f"{path}.weight") for name in names):
            found[path] = f"{path}.weight"
    return found


def _most(values: Mapping[str, Any]) -> Any:
    """The most frequent value, so that the patterns list the fewest modules."""
    return Counter(values.values()).most_common(1)[0][0]


def _alpha(delta: LowRank, rslora: bool) -> float | int:
    """The alpha that gives a delta its scale under a config's own rule."""
    alpha = delta.alpha if delta.rslora == rslora else delta.scale * delta.rank
    return int(alpha) if alpha == int(alpha) else alpha
