"""Telling a whole model from an adapter, without reading its weights.

Headers are read here once more than in ``formats``, which sources may not import and whose readers refuse
what only costs a count here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from adaptrix.errors import AdaptrixError
from adaptrix.json_file import read_object

#: kinds of model weights, most telling first; a folder that has several holds one model several times
_KINDS = (
    ("model*.safetensors", "consolidated*.safetensors"),
    ("pytorch_model*.bin", "consolidated*.pth"),
    ("*.gguf",),
)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_HEADER = 32_000_000
_MAX_FILES = 512


def model_weights(names: Sequence[str]) -> tuple[str, ...]:
    """The files among ``names`` that hold a whole model's weights, of one kind."""
    for patterns in _KINDS:
        if found := tuple(name for name in sorted(names) if any(fnmatchcase(name, p) for p in patterns)):
            return found
    return ()


def count_tensors(folder: Path, weights: Sequence[str]) -> int | None:
    """The number of tensors in the files, from their index or headers; ``None`` where that is not cheap.

    Only a message depends on it, so a damaged header makes it ``None`` as well.
    """
    try:
        indexed = _from_index(folder, weights)
        return indexed if indexed is not None else _from_headers(folder, weights)
    except (OSError, ValueError, RecursionError, AdaptrixError, struct.error):
        return None


def _from_index(folder: Path, weights: Sequence[str]) -> int | None:
    for name in _INDEXES:
        if weights[0].endswith(name.split(".")[1]) and (folder / name).is_file():
            tensors = read_object(folder / name, name, _MAX_HEADER).get("weight_map")
            return len(tensors) if isinstance(tensors, Mapping) else None
    return None


def _from_headers(folder: Path, weights: Sequence[str]) -> int | None:
    if len(weights) > _MAX_FILES:
        return None
    counts = [_header_count(folder / name) for name in weights]
    return None if None in counts else sum(filter(None, counts))


def _header_count(path: Path) -> int | None:
    if path.suffix == ".gguf":
        return _gguf_count(path)
    return _safetensors_count(path) if path.suffix == ".safetensors" else None


def _safetensors_count(path: Path) -> int | None:
    names = header_names(path)
    return len(names) if names is not None else None


def header_names(path: Path) -> list[str] | None:
    """The names of the tensors in a safetensors file; None where its header is too large or no object."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length)) if length <= _MAX_HEADER else None
    return [name for name in header if name != "__metadata__"] if isinstance(header, dict) else None


def _gguf_count(path: Path) -> int | None:
    """GGUF starts with its magic, a version and the number of tensors."""
    with open(path, "rb") as file:
        magic, _, count = struct.unpack("<4sIQ", file.read(16))
    return int(count) if magic == b"GGUF" and count < 10_000_000 else None
