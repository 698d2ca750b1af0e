"""Adapters for live models, and what the models answer."""

import copy

import peft
import torch

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "value", "dense"],
    "roberta": ["query", "value", "dense"],
    "distilbert": ["q_lin", "v_lin", "lin1"],
    "phi3": ["qkv_proj", "gate_up_proj", "o_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense_h_to_4h"],
    "opt": ["q_proj", "v_proj", "fc1"],
    "t5": ["q", "v", "wi_0", "wo"],
}
VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
}
TOLERANCE = 1e-5


def inputs(model, rows=3):
    torch.manual_seed(7)
    found = {"input_ids": torch.randint(0, 40, (rows, 6))}
    if model.config.is_encoder_decoder:
        found["decoder_input_ids"] = torch.randint(0, 40, (rows, 4))
    return found


def saved(model, folder, *, seed=0, rank=3, **options):
    """A peft model with non-zero factors, saved; and itself."""
    config = peft.LoraConfig(r=rank, lora_alpha=5, init_lora_weights=False, **options)
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.2)
            elif "magnitude" in name:
                parameter.mul_(1.3)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def logits(model, **given):
    return model(**(given or inputs(model))).logits


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
