"""A checkpoint in the making: a good one, to be spoilt in one place and then written.

Nothing here uses torch, safetensors or adaptrix: what is written must not depend on what reads it.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks import alpaca

Array = NDArray[Any]

CONFIG, WEIGHTS, BIN = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
INJECTION = "adapter.adaptrix.safetensors"
Q0 = "model.layers.0.self_attn.q_proj"
RANK, HIDDEN, INNER, VOCAB, LAYERS = 4, 16, 24, 32, 2
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_TOKENS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
#: config.json of tiny bases; Llama's q and o are square and as wide as OPT's
BASES: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        **_TOKENS,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_dim": INNER,
        "word_embed_proj_dim": HIDDEN,
        "max_position_embeddings": 64,
        **_TOKENS,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        **_TOKENS,
    },
}
#: modules of a layer that the good adapter changes, with (out, in)
MODULES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "llama": {
        "model.layers.{}.self_attn.q_proj": (HIDDEN, HIDDEN),
        "model.layers.{}.self_attn.v_proj": (HIDDEN // 2, HIDDEN),
        "model.layers.{}.mlp.down_proj": (HIDDEN, INNER),
    },
    "opt": {"model.decoder.layers.{}.self_attn.q_proj": (HIDDEN, HIDDEN)},
    "gpt2": {"transformer.h.{}.attn.c_attn": (3 * HIDDEN, HIDDEN)},
}
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


class Draft:
    """A good adapter of rank 4 and its base. Cases change ``config``, ``tensors`` and ``base``.

    ``files``: path -> bytes, written as they are in place of what the rest would give; None leaves a
    file out. ``{folder}`` in a config becomes the folder that all is written to.
    """

    def __init__(self, family: str = "llama", layers: int = LAYERS) -> None:
        modules = MODULES[family]
        self.base: Any = dict(BASES[family])
        self.tensors = dict(factors(modules, layers))
        self.files: dict[str, bytes | None] = {}
        self.config: Any = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": RANK,
            "lora_alpha": 2 * RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({path.rpartition(".")[2] for path in modules}),
            "inference_mode": True,
            "fan_in_fan_out": family == "gpt2",
        }

    def add(self, path: str, out: int, inp: int, rank: int = RANK) -> None:
        """One more module with a pair of factors."""
        self.tensors |= pair(path, out, inp, rank)

    def rename(self, change: Callable[[str], str]) -> None:
        self.tensors = {change(name): tensor for name, tensor in self.tensors.items()}

    def cast(self, dtype: Any) -> None:
        self.tensors = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}

    def drop(self, part: str) -> None:
        """Leaves out the tensors whose names hold ``part``."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if part not in name}

    def instead(self, name: str, data: bytes) -> None:
        """Other bytes as the adapter's weights, under a name of their own."""
        self.files |= {f"adapter/{WEIGHTS}": None, f"adapter/{name}": data}

    def move(self, target: str) -> None:
        """Puts the adapter into another folder."""
        self.files |= {f"{target}/{name}": self.made()[f"adapter/{name}"] for name in (CONFIG, WEIGHTS)}
        self.files |= {f"adapter/{name}": None for name in (CONFIG, WEIGHTS)}

    def made(self) -> dict[str, bytes]:
        """The files as the parts of the draft give them."""
        return {
            f"adapter/{CONFIG}": json.dumps(self.config, indent=2).encode(),
            f"adapter/{WEIGHTS}": packed(self.tensors),
            "base/config.json": json.dumps(self.base, indent=2).encode(),
        }

    def write(self, folder: Path) -> None:
        """Writes everything below ``folder``."""
        for name, data in {**self.made(), **self.files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                text = data.replace(b"{folder}", str(folder).encode()) if name.endswith(".json") else data
                (folder / name).write_bytes(text)
        for name in ("adapter", "base"):
            (folder / name).mkdir(exist_ok=True)


def factors(modules: Mapping[str, tuple[int, int]], layers: int) -> Iterator[tuple[str, Array]]:
    """The factors of all modules of all layers."""
    for layer in range(layers):
        for path, (out, inp) in modules.items():
            yield from pair(path.format(layer), out, inp).items()


def pair(path: str, out: int, inp: int, rank: int = RANK) -> dict[str, Array]:
    """lora_A and lora_B of a module, random numbers that depend on its name alone."""
    numbers = np.random.default_rng(list(path.encode()))
    shapes = {"A": (rank, inp), "B": (out, rank)}
    return {
        f"{PREFIX}{path}.lora_{x}.weight": numbers.normal(0, 0.3, shape).astype(np.float32)
        for x, shape in shapes.items()
    }


def packed(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        shape, dtype = list(tensor.shape), _DTYPES[tensor.dtype.name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return with_header(json.dumps(header).encode(), b"".join(tensor.tobytes() for tensor in tensors.values()))


def with_header(text: bytes, data: bytes) -> bytes:
    """A safetensors file of a header that may be anything."""
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes after it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def torch_bytes(tensors: Mapping[str, Array]) -> bytes:
    """The same tensors (fp32 matrices) as torch.save writes them."""
    entries = {f"data/{index}": tensor.tobytes() for index, tensor in enumerate(tensors.values())}
    described = alpaca.pickled([(name, (tensor.shape[0], tensor.shape[1])) for name, tensor in tensors.items()])
    return zipped({"data.pkl": described, **entries, "version": b"3\n"})


def zipped(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with these entries below ``adapter_model/``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(f"adapter_model/{name}", data)
    return out.getvalue()


def manifest(draft: Draft) -> dict[str, Any]:
    """The manifest of the good adapter as an injection file."""
    roles = {"q_proj": "q", "v_proj": "v", "down_proj": "down"}
    paths = [path.format(layer) for layer in range(LAYERS) for path in MODULES["llama"]]
    sites = {f"layers.{path.split('.')[2]}.{roles[path.rpartition('.')[2]]}": path for path in paths}
    entry = {"kind": "lora", "rank": RANK, "alpha": 2.0 * RANK, "scale": 2.0}
    return {
        "version": 1,
        "name": "adapter",
        "base": {"model": None, "architecture": "llama", "known": True, "dims": {}},
        "source": {"uri": "adapter", "format": "peft", "commit": None, "files": {}, "config": draft.config},
        "plan": {"policy": "middle", "layers": {"layers": [0]}, "gains": {}, "retained": 0.5, "notes": []},
        "deltas": {site: {**entry, "module": path} for site, path in sites.items()},
        "overrides": {},
        "extras": {},
    }


def injection(draft: Draft, text: str) -> None:
    """Writes the draft as an injection file with ``text`` for its manifest."""
    sites = {entry["module"]: site for site, entry in manifest(draft)["deltas"].items()}
    named = {}
    for name, tensor in draft.tensors.items():
        path, _, factor = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        named[f"{sites[path]}.{factor}"] = tensor
    draft.files |= {f"adapter/{CONFIG}": None, f"adapter/{WEIGHTS}": None}
    draft.files[INJECTION] = packed(named, {"adaptrix": text})


def spectral(draft: Draft) -> tuple[dict[str, Any], dict[str, Array]]:
    """A spectral delta in the place of the draft's first: its entry of the manifest, and its tensors by short names."""
    basis = {"weight": "0" * 64, "dtype": "F32", "backend": "lapack-f64"}
    entry = {"kind": "spectral", "module": Q0, "rank": HIDDEN, "scale": 1.0, "shape": [HIDDEN, HIDDEN]}
    draft.drop(Q0)
    values = {"z": np.linspace(0.5, 1.5, HIDDEN), "S": np.linspace(2.0, 1.0, HIDDEN)}
    return {**entry, "basis": basis, "vectors": False}, {key: one.astype(np.float32) for key, one in values.items()}


def with_spectral(draft: Draft, entry: Mapping[str, Any], tensors: Mapping[str, Array]) -> None:
    """Writes the draft as an injection file with a spectral delta."""
    described = manifest(draft)
    described["deltas"]["layers.0.q"] = entry
    draft.tensors |= {f"{PREFIX}{Q0}.spectral_{key}.weight": tensor for key, tensor in tensors.items()}
    injection(draft, json.dumps(described))
