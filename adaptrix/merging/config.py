"""What a merged model's config says otherwise than its base's: a vocabulary that grew, another dtype."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from adaptrix.architecture import Architecture

#: as a config names dtypes
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merged_config(
    config: Mapping[str, Any], architecture: Architecture, vocabulary: int | None, dtype: str | None
) -> dict[str, Any]:
    """The base's config with what has changed."""
    changed = copy.deepcopy(dict(config))
    if vocabulary is not None:
        rule = architecture.dims.get("vocab", ())
        keys = [option.value for option in rule if isinstance(option.value, str)] or ["vocab_size"]
        for part in _parts(changed):
            part |= {key: vocabulary for key in keys if key in part}
    if dtype is not None:
        for part in _parts(changed):
            part |= {key: _DTYPES[dtype] for key in ("dtype", "torch_dtype") if key in part}
        if not any(key in changed for key in ("dtype", "torch_dtype")):
            changed["dtype"] = _DTYPES[dtype]
    return changed


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The config, and its text model's where it has one."""
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]
