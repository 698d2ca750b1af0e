"""Adapters of every type that peft has, on one tiny model, trained at random."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tests.helpers.families import tiny_model
from tests.helpers.peft_models import Saved, logits

#: the least that a type asks for, beside target modules and a task
NEEDED: Mapping[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 5, "total_step": 10},
    "C3A": {"block_size": 2},
    "CARTRIDGE": {"num_virtual_tokens": 3},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 3, "num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PSOFT": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 3},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 2},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [1, 5], "target_modules": ["embed_tokens"]},
    "VBLORA": {"vector_length": 2, "num_vectors": 20},
    "WAVEFT": {"n_frequency": 20},
}
#: types that cannot be made here: a package is missing, or the model has to be of a certain kind
NOT_MADE = ("ADAMSS", "ADAPTION_PROMPT", "CPT", "SHADOW", "XLORA")


def config_of(kind: str, **keys: Any) -> peft.PeftConfig:
    """A config of a type, with its own defaults but for what it needs and ``keys``."""
    made = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    known = inspect.signature(made).parameters
    usual = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return made(**{key: value for key, value in usual.items() if key in known} | NEEDED.get(kind, {}) | keys)


def model_of(kind: str, family: str = "llama", **keys: Any) -> Any:
    """A tiny model with an adapter of a type, all trained tensors moved at random."""
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_model(family), config_of(kind, **keys))
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad and tensor.is_floating_point():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def save_of(kind: str, folder: Path, family: str = "llama", **keys: Any) -> Saved:
    """The adapter of :func:`model_of`, saved by peft, with the base's config beside it."""
    model = model_of(kind, family, **keys)
    tiny_model(family).config.save_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder / "adapter")
    return Saved(folder / "adapter", folder / "base", lambda: tiny_model(family), logits(model))
