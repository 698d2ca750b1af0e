"""What other tools leave behind and what is put on another base: cases as in ``benchmarks/checkpoints.py``.

Each has one cause, and the first line must name it.
"""

from __future__ import annotations

import struct

import numpy as np

from benchmarks.cases import bad, bad_base
from benchmarks.draft import WEIGHTS, Draft, packed

_STEM = "base_model.model.model.layers.0.mlp.experts.w1"


def _instead(draft: Draft, name: str, *tensors: str) -> None:
    """Tensors of another tool's names in a file of its name."""
    draft.instead(name, packed({tensor: np.ones((4, 8), np.float32) for tensor in tensors}))


@bad("FSDP slices of one process", "FSDP", "full_state_dict=True")
def _(draft: Draft) -> None:
    draft.tensors = {name: tensor[: len(tensor) // 2] for name, tensor in draft.tensors.items()}


@bad("ZeRO-3's empty tensors", "ZeRO-3", "gathered")
def _(draft: Draft) -> None:
    draft.tensors = {name: tensor[:0] for name, tensor in draft.tensors.items()}


@bad("Tinker's stacked experts", "Tinker")
def _(draft: Draft) -> None:
    draft.tensors |= {
        f"{_STEM}.lora_A.weight": np.ones((1, 4, 16), np.float32),
        f"{_STEM}.lora_B.weight": np.ones((3, 24, 4), np.float32),
    }
    draft.config["target_modules"] = "all-linear"


@bad("a folder of mlx-lm with the config of peft", "lora_parameters.scale")
def _(draft: Draft) -> None:
    _instead(draft, "adapters.safetensors", "model.layers.0.self_attn.q_proj.lora_a")


@bad("a LoRA of kohya", "kohya")
def _(draft: Draft) -> None:
    stem = "lora_unet_down_blocks_0_attn_to_q"
    _instead(draft, "style.safetensors", f"{stem}.lora_down.weight", f"{stem}.lora_up.weight")


@bad("a LoRA of diffusers", "diffusers", "load_lora_weights")
def _(draft: Draft) -> None:
    _instead(draft, "pytorch_lora_weights.safetensors", "unet.down.attn.to_q.lora_A.weight")


@bad("a checkpoint in several shards", "several shards", "save_file")
def _(draft: Draft) -> None:
    draft.instead("adapter_model-00001-of-00002.safetensors", packed(draft.tensors))


@bad("a LoRA in GGUF", "llama.cpp")
def _(draft: Draft) -> None:
    key, value = (struct.pack("<Q", len(each)) + each for each in (b"general.type", b"adapter"))
    draft.instead("lora.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<I", 8) + value)


@bad("training_args.bin", "arguments of a training", WEIGHTS, source="adapter/training_args.bin")
def _(draft: Draft) -> None:
    draft.files["adapter/training_args.bin"] = b"\0" * 64


bad_base("another size of the family", "hidden 16, the base has 32", "another size of llama", hidden_size=32)
bad_base("a base of more layers", "layers 2, the base has 4", "or an adapter that was cut off", num_hidden_layers=4)
bad_base("a base of another head size", "the base has 32", "other attention heads", head_dim=8)
