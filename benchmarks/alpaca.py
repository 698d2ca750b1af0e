"""Writes a stand-in for ``tloen/alpaca-lora-7b`` in its published form, with random numbers in it.

    python benchmarks/alpaca.py OUT [--layers 32] [--hidden 4096] [--rank 16] [--safetensors]

The published form is that of the first PEFT: a config with ``enable_lora`` and ``merge_weights``, and
``adapter_model.bin``, a zip archive with a pickle as ``torch.save`` writes it: 256 fp32 tensors, 67 MB.
The defaults give just these names, shapes and sizes. B is not zero, as in a trained adapter. The
archive is written without torch, so that small ones are cheap in tests.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
BASE = "decapoda-research/llama-7b-hf"
_ALIGNMENT = 64

Matrix = NDArray[np.float32]


def config(rank: int = 16, alpha: int = 16) -> dict[str, object]:
    """adapter_config.json as it was published."""
    return {
        "base_model_name_or_path": BASE,
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(MODULES),
        "task_type": "CAUSAL_LM",
    }


def shapes(layers: int = 32, hidden: int = 4096, rank: int = 16) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names as published: A is ``[rank, hidden]``, B is ``[hidden, rank]``."""
    for layer in range(layers):
        for module in MODULES:
            path = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            yield f"{path}.lora_A.weight", (rank, hidden)
            yield f"{path}.lora_B.weight", (hidden, rank)


def tensors(layers: int = 32, hidden: int = 4096, rank: int = 16, seed: int = 0) -> Iterator[tuple[str, Matrix]]:
    """The numbers to the names, the same for a seed."""
    numbers = np.random.default_rng(seed)
    for name, shape in shapes(layers, hidden, rank):
        scale = hidden**-0.5 if ".lora_A." in name else 0.01
        yield name, numbers.standard_normal(shape, np.float32) * np.float32(scale)


def write(
    out: Path, layers: int = 32, hidden: int = 4096, rank: int = 16, seed: int = 0, safetensors: bool = False
) -> Path:
    """The adapter's folder, which is made if it does not exist."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "adapter_config.json").write_text(json.dumps(config(rank), indent=2))
    named = tensors(layers, hidden, rank, seed)
    if safetensors:
        from safetensors.numpy import save_file

        save_file(dict(named), out / "adapter_model.safetensors", metadata={"format": "pt"})
        return out
    with zipfile.ZipFile(out / "adapter_model.bin", "w") as archive:
        _write_entry(archive, "data.pkl", pickled(list(shapes(layers, hidden, rank))))
        for index, (_, matrix) in enumerate(named):
            _write_entry(archive, f"data/{index}", matrix.tobytes())
        _write_entry(archive, "version", b"3\n")
    return out


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """An entry whose bytes start at a multiple of 64, padded in its extra field as torch does."""
    info = zipfile.ZipInfo(f"adapter_model/{name}")
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


def pickled(named: Sequence[tuple[str, tuple[int, int]]]) -> bytes:
    """``OrderedDict`` of names and tensors, each rebuilt from the storage of its number, in protocol 2."""
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE)
    out.write(pickle.MARK)
    for index, (name, shape) in enumerate(named):
        out.write(_text(name) + _tensor(index, shape))
    out.write(pickle.SETITEMS + pickle.STOP)
    return out.getvalue()


def _tensor(index: int, shape: tuple[int, int]) -> bytes:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``."""
    rows, columns = shape
    storage = _text("storage") + _global("torch", "FloatStorage") + _text(str(index)) + _text("cpu")
    return b"".join(
        (
            _global("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK,
            pickle.MARK + storage + _int(rows * columns) + pickle.TUPLE + pickle.BINPERSID,
            _int(0),
            pickle.MARK + _int(rows) + _int(columns) + pickle.TUPLE,
            pickle.MARK + _int(columns) + _int(1) + pickle.TUPLE,
            pickle.NEWFALSE,
            _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
            pickle.TUPLE + pickle.REDUCE,
        )
    )


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def _int(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--safetensors", action="store_true", help="write the newer form instead")
    arguments = vars(parser.parse_args())
    print(write(**arguments))


if __name__ == "__main__":
    main()
