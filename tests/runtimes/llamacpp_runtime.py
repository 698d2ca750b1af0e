"""llama.cpp on the CPU, with a base that its own converter has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama


def run(base: Path, adapter: Path, ids: Any) -> tuple[Any, Any]:
    """The logits of the base alone and with the adapter."""
    return _logits(base, None, ids), _logits(base, str(adapter), ids)


def _logits(base: Path, adapter: str | None, ids: Any) -> Any:
    file = str(base.with_suffix(".gguf"))
    exact = {"type_k": 0, "type_v": 0, "flash_attn": False}  # keys and values in fp32
    model = Llama(file, lora_path=adapter, n_ctx=64, logits_all=True, verbose=False, **exact)
    model.eval(ids[0].tolist())
    logits = np.array(model.scores[: ids.shape[1]])[None].copy()
    model.close()
    return logits
