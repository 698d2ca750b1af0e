"""mlx-lm on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_adapters, load_model

mx.set_default_device(mx.cpu)


def run(base: Path, adapter: Path, ids: Any) -> tuple[Any, Any]:
    """The logits of the base alone and with the adapter."""
    _complete(base / "config.json")
    model, _ = load_model(base)
    alone = _logits(model, ids)
    return alone, _logits(load_adapters(model, str(adapter)), ids)


def _logits(model: Any, ids: Any) -> Any:
    return np.array(model(mx.array(ids)).astype(mx.float32))


def _complete(file: Path) -> None:
    """Adds keys that mlx-lm asks for and transformers 5 writes elsewhere, or not at all."""
    config = json.loads(file.read_text())
    rope = config.get("rope_parameters") or {}
    for key, value in (
        ("rope_theta", rope.get("rope_theta", 10000.0)),
        ("num_experts", config.get("num_local_experts")),
        ("mlp_only_layers", []),
    ):
        config.setdefault(key, value)
    file.write_text(json.dumps(config))
