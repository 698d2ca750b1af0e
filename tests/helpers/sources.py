"""What the tests of the sources share: small adapters, and shorthands."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adaptrix.errors import AdaptrixError, RefusedError
from adaptrix.records import Bundle
from adaptrix.sources import local
from benchmarks import alpaca
from tests.helpers.format_stand_ins import FORMATS

if TYPE_CHECKING:
    from tests.helpers.hub_server import Hub

__all__ = [
    "BIN",
    "CONFIG",
    "FORMATS",
    "LORA",
    "NAME",
    "SAFE",
    "alpaca",
    "alpaca_files",
    "content",
    "fetch",
    "full_model",
    "one",
    "published",
    "put",
    "refused",
    "safetensors_bytes",
]

NAME = "tloen/alpaca-lora-7b"
CONFIG, BIN, SAFE = "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"
LORA = {CONFIG: "{}", SAFE: "weights"}


def alpaca_files(folder: Path, layers: int = 2, hidden: int = 16, rank: int = 2, **options: Any) -> dict[str, bytes]:
    """A small alpaca-lora in its published form: name -> bytes; the folder keeps them too."""
    alpaca.write(folder, layers, hidden, rank, **options)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def safetensors_bytes(tensors: int, data: int = 4) -> bytes:
    """A file of ``tensors`` fp32 scalars, or with ``data`` bytes of them missing or to spare."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for index in range(tensors):
        header[f"t{index}"] = {"dtype": "F32", "shape": [1], "data_offsets": [index * 4, index * 4 + 4]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * data * tensors


def full_model(tensors: int = 7) -> dict[str, bytes]:
    """The files of a small whole model."""
    return {"config.json": b'{"model_type": "llama"}', "model.safetensors": safetensors_bytes(tensors)}


def put(folder: Path, files: dict[str, bytes] | tuple[str, ...]) -> Path:
    """The folder with these files; those given by name alone hold a few bytes."""
    for name, data in (files if isinstance(files, dict) else dict.fromkeys(files, b"{}")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(path: Path | str) -> Bundle:
    """From this disk."""
    assert local.claims(str(path))
    return local.fetch(str(path), FORMATS)


def refused(path: Path | str, kind: type[AdaptrixError] = RefusedError) -> tuple[str, str]:
    """The code and the whole message of the only problem with it."""
    with pytest.raises(kind) as caught:
        fetch(path)
    (problem,) = caught.value.problems
    return problem.code, str(problem)


@pytest.fixture
def published(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """alpaca-lora as it is on the Hub, in small."""
    files = alpaca_files(tmp_path / "published")
    hub.add_repo(NAME, {"README.md": "a card", ".gitattributes": "*.bin filter=lfs", **files})
    return files


def one(hub: Hub, env: dict[str, str], uri: str, what: Any = "fetch") -> Any:
    """The result of a single call in a process of its own."""
    return hub.client(env, (what, uri))[0]


def content(result: dict[str, Any]) -> dict[str, bytes]:
    """What is in the files that were fetched."""
    return {name: Path(path).read_bytes() for name, path in result["files"].items()}
