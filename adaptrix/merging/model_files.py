"""The files of a merged model: weights in the base's own shards, their index, the config, and a record of the merge.

A merge cannot be undone by subtraction, which gives other numbers because of rounding: use the base again.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from adaptrix.architecture import Architecture
from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.base.file_kinds import INDEX
from adaptrix.dtype_names import dtype_name
from adaptrix.merging.draft import MergePlan
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.planning.plan import Plan
from adaptrix.progress import Display, quiet
from adaptrix.tensor import DTYPES, FLOATS, MODEL_FLOATS


def write_model(merge: MergePlan, folder: Path, dtype: str | None, display: Display = quiet) -> int:
    """Writes the weights, their index and the config into ``folder``; returns the bytes of all tensors."""
    from adaptrix.merging.shards import Entry, write_shard

    target = None if dtype is None else dtype_name(dtype)
    shards: dict[str, list[Entry]] = {}
    for file, tensors in merge.base.shards.items():
        shards[file] = []
        for name, tensor in tensors.items():
            cast = target if target is not None and tensor.dtype in FLOATS else tensor.dtype
            change = merge.changes.get(name) or (TensorChange() if cast != tensor.dtype else None)
            shards[file].append(Entry(name, tensor, cast, change, merge.allow_nonfinite))
    total = sum(entry.result.nbytes for entries in shards.values() for entry in entries)
    with display(total) as progress:
        for file, entries in shards.items():
            write_shard(folder / file, entries, {**merge.base.metadata[file], "format": "pt"}, progress)
    if merge.base.index is not None:
        sizes = {entry.name: entry.result.size for entries in shards.values() for entry in entries}
        (folder / INDEX).write_text(as_json(_index(merge.base, total, sizes)))
    _write_config(merge, folder, target)
    return total


def _index(base: BaseCheckpoint, total: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The base's index with the sizes of the result."""
    assert base.index is not None  # checked by the caller
    stated = base.index.get("metadata")
    metadata = {**(stated if isinstance(stated, dict) else {}), "total_size": total}
    grown = sum(sizes.values()) - sum(tensor.size for tensor in base.tensors().values())
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += grown
    return {**base.index, "metadata": metadata}


def _write_config(merge: MergePlan, folder: Path, dtype: str | None) -> None:
    """Writes the config: the base's own bytes where nothing in it changes."""
    config = merged_config(merge.base.config, merge.plan.bound.architecture, merge.vocabulary, dtype)
    if config == merge.base.config:
        shutil.copyfile(merge.base.folder / "config.json", folder / "config.json")
    else:
        (folder / "config.json").write_text(as_json(config))


def as_json(value: Mapping[str, Any]) -> str:
    """A JSON file's text."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


#: as a config names dtypes
_DTYPES = {name: DTYPES[name][1] for name in MODEL_FLOATS}


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


RECORD = "adaptrix_merge.json"
VERSION = 1


def record(plan: Plan, base: BaseCheckpoint, dtype: str | None, qlora_base: str | None) -> dict[str, Any]:
    """The record of a merge: base, adapter and options; of paths on this disk, the last part alone."""
    source = plan.bound.adapter.provenance
    return {
        "version": VERSION,
        "base": {"model": base.name if base.commit else PurePath(base.name).name, "commit": base.commit},
        "adapter": {
            "uri": source.uri if source.commit else PurePath(source.uri).name,
            "commit": source.commit,
            "files": dict(source.files),
        },
        "plan": {"policy": plan.policy, "layers": {stack: list(layers) for stack, layers in plan.layers.items()}},
        "dtype": dtype,
        "qlora_base": qlora_base,
    }
