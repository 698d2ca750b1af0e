"""Writes a hypernetwork as SakanaAI's code does: ``hypermod.pt``, ``args.yaml`` and ``adapter_config.json``.

:func:`adaptrix_text_to_lora.checkpoint.read_checkpoint` reads it, and so does the published code, as far as its
own modules go. Equal hypernetworks give equal bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import Tensor

from adaptrix.extend import atomic, renamed_parameters
from adaptrix_text_to_lora.checkpoint import ARGS, CONFIG, NAME
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.shape import Shape

FILES = (NAME, ARGS, CONFIG)


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """Facts of a checkpoint beside its weights: the scale of its LoRAs, the ``base`` that they are for, the
    ``encoder`` that it reads (``hashed``, a model's name, None for the base's own states), and ``args`` for the record.
    """

    alpha: float
    rslora: bool = False
    base: str | None = None
    encoder: str | None = None
    args: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def scale(self, rank: int) -> float:
        """The scale of ΔW = scale · B·A."""
        return self.alpha / (sqrt(rank) if self.rslora else rank)


@renamed_parameters(card="record")
def write_checkpoint(
    folder: Path,
    hypernetwork: Hypernetwork,
    record: CheckpointRecord,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
) -> None:
    """Writes the three files into a new folder, whole or not at all; ``force`` replaces one that holds no other.

    ``dtype``: of the weights, to make them smaller. Raises :class:`AdaptrixError`.
    """
    with atomic.output(folder, force=force, holds=FILES) as work:
        work.mkdir()
        for name, data in checkpoint_files(hypernetwork.shape, hypernetwork.state_dict(), record, dtype).items():
            (work / name).write_bytes(data)


def checkpoint_files(
    shape: Shape, tensors: Mapping[str, Tensor], record: CheckpointRecord, dtype: torch.dtype | None = None
) -> dict[str, bytes]:
    """The bytes of a checkpoint's files by name. Modules are in the shape's order, which that of the heads records."""
    state = {name: tensor.detach().cpu().to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    weights = io.BytesIO()  # of a file, its name would be among the bytes
    torch.save(state, weights)
    args = yaml.safe_dump({**record.args, **_args(shape, record)}, sort_keys=True, allow_unicode=True)
    config = json.dumps(_config(shape, record), indent=2, ensure_ascii=False) + "\n"
    return {NAME: weights.getvalue(), ARGS: args.encode(), CONFIG: config.encode()}


def _args(shape: Shape, record: CheckpointRecord) -> dict[str, Any]:
    ranked = shape.variant == "S"
    return {
        "model_dir": record.base or "",
        "emb_model": record.encoder or "",
        "encoder_type": "linear",
        "training_task": "sft" if shape.output == "added" else "recon",
        "pred_z_score": shape.output == "z-score",
        "shared_AB_head": shape.variant != "L",
        "autoreg_gen": ranked,
        "learnable_pos_emb": ranked,
        "hypernet_latent_size": shape.latent,
        "head_in_size": shape.head_in,
        "use_one_hot_task_emb": False,
    }


def _config(shape: Shape, record: CheckpointRecord) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": record.base or "",
        "r": shape.rank,
        "lora_alpha": record.alpha,
        "use_rslora": record.rslora,
        "target_modules": [module.name for module in shape.modules],
        "lora_dropout": 0.0,
        "bias": "none",
    }
