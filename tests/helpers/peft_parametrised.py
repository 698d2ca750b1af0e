"""Adapters of PEFT types whose ΔW is a formula of their tensors, and what peft says of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from tests.helpers.peft_models import Saved, logits
from tests.helpers.peft_types import save_of

QVD = ["q_proj", "v_proj", "down_proj"]
MASKS = {"q_proj": [True, False, True, False, False], "v_proj": [False] * 5, "down_proj": [True] * 5}


def pruned() -> dict[str, list[bool]]:
    """A rank_pattern as AdaLoRA's allocator leaves it: some ranks of a module, none of another, all of a third."""
    roles = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
    return {
        f"model.layers.{layer}.{roles[name]}.{name}.lora_E.default": mask
        for layer in range(3)
        for name, mask in MASKS.items()
    }


CASES = {
    "AdaLoRA": ("ADALORA", "llama", {"lora_alpha": 7}),
    "AdaLoRA pruned": ("ADALORA", "llama", {"lora_alpha": 7, "rank_pattern": pruned()}),
    "AdaLoRA without alpha": ("ADALORA", "llama", {"lora_alpha": 0, "rank_pattern": pruned()}),
    "AdaLoRA on Conv1D": ("ADALORA", "gpt2", {"lora_alpha": 7, "target_modules": ["c_attn", "c_fc"], "bias": "all"}),
    "LoHa": ("LOHA", "llama", {"r": 3, "alpha": 7}),
    "LoHa of full rank": ("LOHA", "llama", {"r": 6, "alpha": 7}),
    "LoHa with patterns": (
        "LOHA", "qwen2", {"r": 2, "alpha": 5, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"1.mlp.down_proj": 3}}
    ),
    "LoKr": ("LOKR", "llama", {"r": 2, "alpha": 7}),
    "LoKr of two factors": ("LOKR", "llama", {"r": 1, "alpha": 7, "decompose_both": True}),
    "LoKr of whole matrices": ("LOKR", "llama", {"r": 16, "alpha": 7, "decompose_factor": 4, "rank_dropout": 0.5}),
    "VeRA": ("VERA", "llama", {"r": 5}),
    "VeRA without its projections": ("VERA", "qwen2", {"r": 5, "save_projection": False, "projection_prng_key": 77}),
    "VeRA on Conv1D": ("VERA", "gpt2", {"r": 30, "target_modules": ["c_attn", "mlp.c_proj"]}),
    "MiSS": ("MISS", "llama", {"r": 4}),
    "MiSS of a rank that does not divide": ("MISS", "llama", {"r": 7, "bias": "none"}),
    "MiSS mini": ("MISS", "qwen2", {"r": 4, "init_weights": "mini", "mini_r": 2}),
    "GraLoRA": ("GRALORA", "llama", {"r": 4, "alpha": 7, "gralora_k": 2}),
    "GraLoRA with a LoRA": ("GRALORA", "llama", {"r": 2, "alpha": 7, "gralora_k": 2, "hybrid_r": 1}),
    "DeLoRA": ("DELORA", "llama", {"r": 3, "delora_lambda": 5}),
    "DeLoRA with patterns": (
        "DELORA", "qwen2", {"r": 3, "rank_pattern": {"v_proj": 2}, "lambda_pattern": {"q_proj": 3}}
    ),
    "VB-LoRA": ("VBLORA", "llama", {"r": 3, "num_vectors": 9, "vector_length": 2}),
    "VB-LoRA of weights": (
        "VBLORA", "llama", {"r": 3, "topk": 3, "num_vectors": 9, "vector_length": 2, "save_only_topk_weights": True}
    ),
    "FourierFT": ("FOURIERFT", "llama", {"n_frequency": 50, "scaling": 30.0, "random_loc_seed": 5}),
    "FourierFT on Conv1D": ("FOURIERFT", "gpt2", {"n_frequency": 50, "target_modules": ["c_attn"]}),
    "SHiRA": ("SHIRA", "llama", {"r": 2}),
    "C3A": ("C3A", "llama", {"block_size": 2}),
    "LoKr with a saved head": ("LOKR", "llama", {"r": 2, "alpha": 7, "modules_to_save": ["lm_head"]}),
}  # fmt: skip


def case(name: str, folder: Path, **more: Any) -> Saved:
    """An adapter of :data:`CASES`, and what peft answers with it once it is loaded: what is saved is pruned."""
    kind, family, keys = CASES[name]
    saved = save_of(kind, folder, family, **{"target_modules": QVD} | keys | more)
    return replace(saved, logits=logits(load(saved)))


def load(saved: Saved, folder: Path | None = None) -> Any:
    """The model with an adapter, as peft loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(saved.build(), folder or saved.folder).eval()


def peft_deltas(saved: Saved) -> dict[str, np.ndarray]:
    """ΔW ``[out, in]`` by path, as peft computes it."""
    found = {}
    for path, module in load(saved).get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "get_delta_weight"):
            turned = isinstance(module.get_base_layer(), Conv1D) and saved.config["peft_type"] != "FOURIERFT"
            weight = module.get_base_layer().weight.detach().clone()
            if saved.config["peft_type"] == "MISS":  # which has no ΔW of its own
                delta = module.get_delta_weight_miss("default", weight.clone()).double() - weight.double()
            else:
                delta = module.get_delta_weight("default").to_dense().double()
            found[path] = (delta.T if turned else delta).detach().numpy()
    return found
