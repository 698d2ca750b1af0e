"""Every way that peft trains a LoRA goes there and back; peft is the judge."""

import peft
import pytest
import torch
import transformers

from tests.families import tiny_config, tiny_model
from tests.peft_models import assert_lossless, save

QV = ["q_proj", "v_proj"]


def head(kind, family):
    """A builder of a tiny model with another head."""

    def build():
        torch.manual_seed(0)
        config = tiny_config(family)
        config.num_labels, config.pad_token_id = 2, 0
        return getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()

    return build


VARIANTS = {
    "plain": ("llama", {"target_modules": QV}),
    "rslora": ("llama", {"target_modules": QV, "use_rslora": True, "rank_pattern": {"v_proj": 5}}),
    "patterns": (
        "qwen3",
        {
            "target_modules": QV,
            "rank_pattern": {"layers.1.self_attn.q_proj": 1, "q_proj": 4, r"model\.layers\.[02]\..*v_proj": 2},
            "alpha_pattern": {"^model.layers.2.self_attn.q_proj": 1.5, "(k|v)_proj": 9},
        },
    ),
    "dora": ("llama", {"target_modules": [*QV, "down_proj"], "use_dora": True}),
    "dora on Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora on embeddings": ("gpt2", {"target_modules": ["wte", "c_fc"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "embeddings of GPT-2": ("gpt2", {"target_modules": ["c_attn", "wte", "wpe"]}),
    "tied head": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    "lora_bias": ("qwen2", {"target_modules": QV, "lora_bias": True}),
    "bias all": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "bias lora_only": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "lora_only"}),
    "modules_to_save": ("llama", {"target_modules": QV, "modules_to_save": ["lm_head", "norm"]}),
    "saved embeddings": ("bert", {"target_modules": ["query"], "modules_to_save": ["word_embeddings", "decoder"]}),
    "tokens": ("llama", {"target_modules": QV, "trainable_token_indices": [1, 5, 9]}),
    "tied tokens": ("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [2, 3]}}),
    "replication": ("llama", {"target_modules": QV, "layer_replication": [[0, 2], [1, 3]]}),
    "one layer": ("llama", {"target_modules": QV, "layers_to_transform": 1}),
    "some layers": ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [0, 2], "layers_pattern": "h"}),
    "exclusion": ("llama", {"target_modules": [*QV, "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj"]}),
    "excluding regex": ("llama", {"target_modules": QV, "exclude_modules": r".*\.1\..*q_proj"}),
    "all-linear": ("bert", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r".*\.(0|2)\.(self_attn|mlp)\.(q_proj|down_proj)"}),
    "full paths": ("llama", {"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj"]}),
    "gate_up and down": ("mixtral", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "gate_up": ("qwen3_moe", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
    "down": ("mixtral", {"target_parameters": ["mlp.experts.down_proj"], "target_modules": ["o_proj"]}),
    "router": ("mixtral", {"target_parameters": ["mlp.gate.weight"], "target_modules": []}),
    "bare names": (
        "qwen3_moe",
        {
            "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"],
            "target_modules": ["q_proj"],
            "rank_pattern": {r".*\.gate_up_proj": 4, "experts.down_proj": 2},
            "alpha_pattern": {"gate.weight": 3},
            "use_rslora": True,
        },
    ),
    "parameters and all-linear": (
        "mixtral",
        {"target_parameters": ["gate_up_proj"], "target_modules": "all-linear"},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant(name, tmp_path):
    family, keys = VARIANTS[name]
    assert_lossless(save(tmp_path, family, **keys), tmp_path)


@pytest.mark.parametrize(
    ("kind", "family", "task", "target"),
    [
        ("SequenceClassification", "llama", "SEQ_CLS", "q_proj"),
        ("SequenceClassification", "bert", "SEQ_CLS", "query"),
        ("SequenceClassification", "roberta", "SEQ_CLS", "query"),
        ("SequenceClassification", "gpt2", "SEQ_CLS", "c_attn"),
        ("TokenClassification", "distilbert", "TOKEN_CLS", "q_lin"),
        ("QuestionAnswering", "bert", "QUESTION_ANS", "query"),
    ],
)
def test_heads(kind, family, task, target, tmp_path):
    saved = save(tmp_path, family, build=head(kind, family), task_type=task, target_modules=[target])
    assert_lossless(saved, tmp_path)
    assert any("classifier" in name or "score" in name or "qa_outputs" in name for name in saved.tensors)
