"""Writes a PEFT checkpoint: a folder that peft loads.

Deltas that came from a PEFT checkpoint and were not altered go back under the config they came with;
altered or generated ones get a config that spells out every module, rank and alpha.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptrix.adapter import Target
from adaptrix.delta import LowRank, fuse, straightened
from adaptrix.errors import refuse
from adaptrix.formats import safetensors_file
from adaptrix.formats.peft_config import CONFIG_NAME
from adaptrix.formats.peft_keys import PREFIX
from adaptrix.formats.peft_read import EXPERT_ORDER, WEIGHTS
from adaptrix.layout import Rows, role_rows
from adaptrix.patterns import suffix_match
from adaptrix.plan import Plan
from adaptrix.tensor import Tensor

#: keys that say which modules get which rank and scale: spelled out anew for altered deltas
_DERIVED = frozenset(
    """r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules layers_to_transform
    layers_pattern enable_lora merge_weights init_lora_weights use_dora lora_bias""".split()
)


def write(plan: Plan, path: Path) -> None:
    """Writes every delta of a complete plan into the new folder ``path``."""
    modules = _modules(plan)
    raw = plan.bound.adapter.provenance.config
    config = _described(raw, modules) if _rewritten(plan) else _verbatim(raw, modules)
    path.mkdir()
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (path / CONFIG_NAME).write_text(text + "\n", "utf-8")
    safetensors_file.write(path / WEIGHTS[0], _tensors(plan, modules), {"format": "pt"})


def _rewritten(plan: Plan) -> bool:
    adapter = plan.bound.adapter
    return adapter.altered or adapter.provenance.format != "peft" or any(t.slot is not None for t in plan.bound.targets.values())


def _modules(plan: Plan) -> dict[str, LowRank]:
    """One delta a module: parts of a fused weight become one, stacked experts lie as peft has them today."""
    whole: dict[str, LowRank] = {}
    parts: dict[str, dict[Target, LowRank]] = {}
    rows: dict[str, Mapping[str, Rows]] = {}
    for site, delta in plan.bound.deltas.items():
        target = plan.bound.targets[site]
        if target.slot is None:
            whole[target.path] = straightened(delta)
        else:
            parts.setdefault(target.path, {})[target] = delta
            rows[target.path] = role_rows(plan.bound.architecture.roles[site.role], plan.bound.dims) or _equal(target, delta)
    for path, group in parts.items():
        names = list(rows[path])
        whole[path] = fuse({names[t.slot or 0]: d for t, d in sorted(group.items())}, rows[path])
    return whole


def _equal(target: Target, delta: LowRank) -> dict[str, Rows]:
    """Equal parts one after another, as MergedLinear has them."""
    size = delta.B.shape[0]
    return {f"slot{i}": np.arange(i * size, (i + 1) * size) for i in range(target.slots or 0)}


def _tensors(plan: Plan, modules: Mapping[str, LowRank]) -> dict[str, Tensor]:
    parameters = plan.bound.adapter.provenance.config.get("target_parameters") or ()
    named = {}
    for path, delta in modules.items():
        stem = f"{PREFIX}{_module_path(path, modules, parameters)}"
        word = "lora_embedding_" if delta.embedding else "lora_"
        leaf = "" if delta.embedding else ".weight"
        named |= {f"{stem}.{word}A{leaf}": delta.A, f"{stem}.{word}B{leaf}": delta.B}
        if delta.bias is not None:
            named[f"{stem}.lora_B.bias"] = delta.bias
        if delta.magnitude is not None:
            named[f"{stem}.lora_magnitude_vector"] = delta.magnitude
    return named | {f"{PREFIX}{key}": extra.tensor for key, extra in plan.bound.adapter.extras.items()}


def _module_path(path: str, modules: Mapping[str, LowRank], parameters: Any) -> str:
    """The module that peft hangs a delta on: for a parameter its owner, one ``base_layer`` deeper for
    each parameter of the same owner that is wrapped after it."""
    if not any(suffix_match(parameter, path) for parameter in parameters):
        return path
    owner, _, name = path.rpartition(".")
    later = [n for n in EXPERT_ORDER[EXPERT_ORDER.index(name) + 1 :] if f"{owner}.{n}" in modules] if name in EXPERT_ORDER else []
    return owner + ".base_layer" * len(later)


def _verbatim(raw: Mapping[str, Any], modules: Mapping[str, LowRank]) -> dict[str, Any]:
    """The config as it came, with its lists of names sorted and rank and alpha made explicit."""
    config = {"r": 8, "lora_alpha": 8} | dict(raw)
    for key in ("target_modules", "modules_to_save", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    if config.get("target_parameters") and any(delta.experts for delta in modules.values()):
        config["peft_version"] = "0.19.1"  # the layout of stacked experts that is written here
    return config


def _described(raw: Mapping[str, Any], modules: Mapping[str, LowRank]) -> dict[str, Any]:
    """A config that gives every module its rank and scale by its full path."""
    if any(delta.experts for delta in modules.values()):
        raise refuse("no-sum", "target_parameters", "altered deltas on stacked experts", "plain modules", "Leave out --prune.")
    ranks = {path: delta.rank for path, delta in modules.items()}
    alphas = {path: _number(delta.scale * delta.rank) for path, delta in modules.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return {key: value for key, value in raw.items() if key not in _DERIVED} | {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: r for path, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {path: a for path, a in sorted(alphas.items()) if a != alpha},
        "target_modules": sorted(modules),
        "use_rslora": False,
        "use_dora": any(delta.magnitude is not None for delta in modules.values()),
        "lora_bias": any(delta.bias is not None for delta in modules.values()),
        "init_lora_weights": True,
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
