"""Tiny models and adapters of peft's, converted for another runtime, with the logits that peft gives.

    python -m tests.runtimes.cases mlx FOLDER

writes FOLDER/<family>/ (the base, as transformers saves it) and FOLDER/<family>-<case>/ with ``reference.npz``
(``ids``, ``base``, ``adapted``) and the adapter in the format named, as ``adaptrix convert`` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch import nn

import adaptrix
from adaptrix import UsageError

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: family -> the keys of a config that runtimes and transformers understand alike
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "head_dim": 16},
    "qwen2": {**_SIZES, "tie_word_embeddings": False},
    "qwen3": {**_SIZES, "head_dim": 16, "tie_word_embeddings": False},
    "gemma2": {**_SIZES, "head_dim": 16, "query_pre_attn_scalar": 16},
    "phi3": {**_SIZES, "original_max_position_embeddings": 64, "sliding_window": None},
    "mixtral": {**_SIZES, **_MOE},
    "qwen3_moe": {
        **_SIZES,
        **_MOE,
        "num_experts": 4,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}
_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
#: case -> options of peft's; "head" is on the embedding and the head as well
CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 12},
    "mixed": {"rank_pattern": {r"layers.0.*": 6}, "alpha_pattern": {r"layers.1.*": 10}, "r": 4, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "head": {"r": 4, "lora_alpha": 8},
}


def make(to: str, folder: Path) -> None:
    """Writes every case that the format can hold."""
    for family, sizes in FAMILIES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **sizes)
        model = _loud(transformers.AutoModelForCausalLM.from_config(config).float().eval())
        model.save_pretrained(folder / family)
        for case, options in CASES.items():
            if not (config.tie_word_embeddings and case == "head") and not (_is_moe(sizes) and case != "lora"):
                _case(to, folder, family, case, options)


def _is_moe(sizes: dict[str, Any]) -> bool:
    return "num_local_experts" in sizes


def _loud(model: nn.Module) -> nn.Module:
    """The model with weights large enough that what goes wrong shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1
            parameter.copy_(torch.randn_like(parameter) * (0.3 if matrix else 0.2) + (0 if matrix else 1))
    return model


def _case(to: str, folder: Path, family: str, case: str, options: dict[str, Any]) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / family).float().eval()
    ids = torch.arange(1, 20)[None] * 3 % 90
    parameters = {"target_parameters": _PARAMETERS} if _is_moe(FAMILIES[family]) else {}
    with torch.no_grad():
        before = base(ids).logits
        config = peft.LoraConfig(target_modules=_targets(base, whole=case == "head"), **parameters, **options)
        model = peft.get_peft_model(base, config).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            elif "magnitude" in name:
                parameter.mul_(1.3)
        after = model(ids).logits
    home = folder / f"{family}-{case}"
    model.save_pretrained(str(home / "peft"), save_embedding_layers=False)
    np.savez(home / "reference.npz", ids=ids.numpy(), base=before.numpy(), adapted=after.numpy())
    try:
        out = home / f"{to}{'.gguf' if to == 'gguf' else ''}"
        adaptrix.convert(str(home / "peft"), out, base=str(folder / family), to=to, force=True)
    except UsageError as error:
        print(f"{family} {case}: not written: {error.problems[0].found}")


def _targets(model: nn.Module, *, whole: bool) -> list[str]:
    heads = ("lm_head",)
    inside = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in heads]
    outside = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding) or name in heads]
    return inside + (outside if whole else [])


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
