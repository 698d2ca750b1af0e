"""Tiny models of every family in the registry, for tests that need the real thing.

Sizes are small, even where rotary embeddings ask for it, and all different, so that a transposed or
swapped dimension cannot hide; heads are grouped and ``head_dim`` is not ``hidden / heads`` wherever
the family allows it. (Experts' sizes are multiples of 8: torch's grouped matrix product wants strides
of 16 bytes.) Nothing here imports torch until a model is asked for.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from adaptrix.architecture import Architecture
from adaptrix.architecture.registry import builtin_folder, read_architecture

Config = dict[str, Any]


def _gqa(model_type: str, sizes: str, **rest: Any) -> Config:
    """The keys that llama and its many relatives share. ``sizes``: hidden heads kv_heads inner vocab."""
    hidden, heads, kv_heads, inner, vocab = map(int, sizes.split())
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **rest,
    }


def _encoder(model_type: str, sizes: str, **rest: Any) -> Config:
    """BERT's keys. ``sizes``: hidden heads inner vocab positions types."""
    hidden, heads, inner, vocab, positions, types = map(int, sizes.split())
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "num_hidden_layers": 3,
        **rest,
    }


def _t5(model_type: str, **rest: Any) -> Config:
    sizes = {"d_model": 26, "d_kv": 6, "num_heads": 3, "d_ff": 38, "vocab_size": 107, "num_layers": 3}
    return {"model_type": model_type, **sizes, "num_decoder_layers": 2, "relative_attention_num_buckets": 14, **rest}


_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 3, "vocab_size": 67, "n_positions": 41, **_TOKENS}
_FALCON = {"model_type": "falcon", "num_hidden_layers": 3, "vocab_size": 91, **_TOKENS}
_OPT = {"model_type": "opt", "hidden_size": 24, "num_attention_heads": 3, "ffn_dim": 34, "num_hidden_layers": 3}
_VISION = {"hidden_size": 18, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 3}

#: family -> configs: the first is the natural one, the others its variants and its other model types
FAMILIES: dict[str, tuple[Config, ...]] = {
    "bert": (
        _encoder("bert", "20 4 26 61 31 3"),
        _encoder("bert", "20 4 26 61 31 3", is_decoder=True, add_cross_attention=True),
    ),
    "bloom": ({"model_type": "bloom", "hidden_size": 28, "n_head": 4, "n_layer": 3, "vocab_size": 71},),
    "distilbert": (
        {
            "model_type": "distilbert",
            "dim": 24,
            "n_heads": 3,
            "hidden_dim": 42,
            "n_layers": 3,
            "vocab_size": 53,
            "max_position_embeddings": 29,
        },
    ),
    "falcon": (
        {
            **_FALCON,
            "new_decoder_architecture": True,
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "ffn_hidden_size": 62,
        },
        {**_FALCON, "multi_query": True, "hidden_size": 40, "num_attention_heads": 5},
        {**_FALCON, "multi_query": False, "alibi": True, "hidden_size": 36, "num_attention_heads": 3},
    ),
    "gemma2": (
        _gqa("gemma2", "28 4 2 52 89", head_dim=10),
        _gqa("gemma", "24 4 1 44 83", head_dim=14),
    ),
    "gemma3": (
        {
            "model_type": "gemma3",
            "text_config": _gqa("gemma3_text", "32 4 2 54 83", head_dim=12),
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7, **_VISION},
            "mm_tokens_per_image": 4,
            "image_token_index": 82,
        },
    ),
    "gemma3_text": (_gqa("gemma3_text", "32 4 2 54 83", head_dim=12),),
    "gpt2": (
        _GPT2,
        {**_GPT2, "n_inner": 58, "add_cross_attention": True},
    ),
    "gpt_neox": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 24,
            "num_attention_heads": 3,
            "intermediate_size": 58,
            "num_hidden_layers": 3,
            "vocab_size": 101,
        },
    ),
    "llama": (
        _gqa("llama", "24 6 2 34 67", head_dim=10),
        _gqa("mistral", "28 4 2 38 71", head_dim=6),
    ),
    "mixtral": (_gqa("mixtral", "24 4 2 40 109", head_dim=10, num_local_experts=3),),
    "opt": (
        {**_OPT, "vocab_size": 103, "max_position_embeddings": 37},
        {**_OPT, "vocab_size": 103, "word_embed_proj_dim": 14, "do_layer_norm_before": False},
    ),
    "phi3": (_gqa("phi3", "40 4 2 46 97"),),
    "qwen2": (_gqa("qwen2", "40 4 2 46 73"),),
    "qwen3": (_gqa("qwen3", "36 6 3 50 79", head_dim=8),),
    "qwen3_moe": (
        _gqa(
            "qwen3_moe",
            "32 4 2 50 113",
            head_dim=10,
            moe_intermediate_size=24,
            num_experts=5,
            num_experts_per_tok=2,
            mlp_only_layers=[1],
        ),
    ),
    "roberta": (
        _encoder("roberta", "20 5 28 59 33 2"),
        _encoder("xlm-roberta", "24 3 34 61 37 3"),
        _encoder("roberta", "20 5 28 59 33 2", is_decoder=True, add_cross_attention=True),
    ),
    "t5": (
        _t5("t5"),
        _t5("t5", feed_forward_proj="gated-gelu"),
        _t5("mt5", feed_forward_proj="gated-gelu"),
        _t5("umt5", feed_forward_proj="gated-gelu"),
    ),
}


@cache
def architecture(family: str) -> Architecture:
    """The registry's record of a family."""
    return read_architecture(builtin_folder() / f"{family}.toml")


def tiny_config(family: str, variant: int = 0) -> Any:
    """A fresh transformers config of a family; ``variant`` indexes FAMILIES[family]."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**copy.deepcopy(FAMILIES[family][variant]))


def tiny_model(family: str, seed: int = 0, variant: int = 0, head: int = 0) -> Any:
    """A model with random weights, fp32, in eval mode, of a family's natural class: the causal, sequence to
    sequence or masked language model. ``head`` takes another of ``adaptrix.base.meta_model.model_classes`` instead."""
    import torch

    from adaptrix.base.meta_model import model_classes

    config = tiny_config(family, variant)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    return model_classes(config)[head](config).eval()
