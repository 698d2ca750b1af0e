"""Whatever peft saves for the options that it takes is read, and written back byte for byte, for every family.

A sample of the cases runs always, the others are slow.
"""

import warnings
from pathlib import Path

import peft
import pytest
import torch

import adaptrix
from tests.helpers.families import FAMILIES
from tests.helpers.heads import KINDS, builder
from tests.helpers.peft_models import PARAMETERS, Saved, round_trip, same_config, same_tensors, save, trained, weights
from tests.helpers.sampling import sampled

#: family -> an attention and another linear layer, the embedding, the head, a norm, the list of layers
NAMES = {
    family: names.split()
    for family, names in {
        "bert": "query dense word_embeddings decoder LayerNorm layer",
        "bloom": "query_key_value dense_h_to_4h word_embeddings lm_head ln_f h",
        "distilbert": "q_lin lin1 word_embeddings vocab_projector output_layer_norm layer",
        "falcon": "query_key_value dense_h_to_4h word_embeddings lm_head ln_f h",
        "gpt2": "c_attn c_fc wte lm_head ln_f h",
        "gpt_neox": "query_key_value dense_h_to_4h embed_in lm_head final_layer_norm layers",
        "mixtral": "q_proj o_proj embed_tokens lm_head norm layers",
        "opt": "q_proj fc1 embed_tokens lm_head final_layer_norm layers",
        "phi3": "qkv_proj gate_up_proj embed_tokens lm_head norm layers",
        "qwen3_moe": "q_proj o_proj embed_tokens lm_head norm layers",
        "roberta": "query dense word_embeddings decoder LayerNorm layer",
        "t5": "q wo shared lm_head final_layer_norm block",
    }.items()
}
LLAMAS = ["q_proj", "down_proj", "embed_tokens", "lm_head", "norm", "layers"]

#: option -> keys of a LoraConfig; {names} are those of the family, and modules are {attention} and {other} if not said
OPTIONS = {
    "nothing": {},
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "DoRA": {"use_dora": True},
    "DoRA, all biases": {"use_dora": True, "bias": "all"},
    "rsLoRA": {"use_rslora": True},
    "biases of B": {"lora_bias": True},
    "biases of B, all biases": {"lora_bias": True, "bias": "all"},
    "patterns": {
        "rank_pattern": {"{attention}": 5, r".*\.1\..*{other}": 2},
        "alpha_pattern": {"{other}": 11, r".*\.0\..*": 3},
    },
    "layers": {"layers_to_transform": [0, 2], "layers_pattern": "{stack}"},
    "one layer": {"layers_to_transform": 1},
    "without one": {"exclude_modules": ["{other}"]},
    "without a regex": {"exclude_modules": r".*\.1\..*{attention}"},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear, all biases": {"target_modules": "all-linear", "bias": "all"},
    "regex": {"target_modules": r".*\.(0|2)\..*({attention}|{other})"},
    "embedding": {"target_modules": ["{attention}", "{embedding}"]},
    "DoRA on the embedding": {"target_modules": ["{attention}", "{embedding}"], "use_dora": True},
    "head": {"target_modules": ["{attention}", "{head}"]},
    "embedding and head": {"target_modules": ["{attention}", "{embedding}", "{head}"]},
    "saved norm": {"modules_to_save": ["{norm}"]},
    "saved norm, all biases": {"modules_to_save": ["{norm}"], "bias": "all"},
    "saved embedding": {"modules_to_save": ["{embedding}"]},
    "saved head": {"modules_to_save": ["{head}"]},
    "saved head, all biases": {"modules_to_save": ["{head}"], "bias": "all"},
    "saved embedding and head": {"modules_to_save": ["{embedding}", "{head}"]},
    "tokens": {"trainable_token_indices": [2, 5]},
    "tokens of the embedding": {"trainable_token_indices": {"{embedding}": [2, 3]}},
    "tokens of both": {"trainable_token_indices": {"{embedding}": [2, 3], "{head}": [4, 5, 6]}},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "no start": {"init_lora_weights": False},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "replication": {"layer_replication": [[0, 2], [1, 3]]},
    "parameters": {"target_parameters": PARAMETERS["mixtral"]},
    "one parameter": {"target_parameters": PARAMETERS["mixtral"][:1]},
    "bare parameters, all biases": {"target_parameters": ["gate_up_proj", "down_proj"], "bias": "all"},
    "parameters alone": {
        "target_modules": [],
        "target_parameters": PARAMETERS["mixtral"],
        "use_rslora": True,
        "rank_pattern": {"gate_up_proj": 2},
    },
    "parameters, all-linear": {"target_parameters": PARAMETERS["mixtral"], "target_modules": "all-linear"},
}
#: the same where embedding and head are tied
TIED = {
    "tied embedding": {"target_modules": ["{attention}", "{embedding}"]},
    "tied head": {"target_modules": ["{attention}", "{head}"]},
    "tied embedding and head": {"target_modules": ["{attention}", "{embedding}", "{head}"]},
    "tied, a regex": {"target_modules": ".*({attention}|{embedding})"},
    "tied, ranks and alphas": {
        "target_modules": ["{attention}", "{embedding}"],
        "rank_pattern": {"{embedding}": 5},
        "alpha_pattern": {"{head}": 2, "{attention}": 5},
    },
    "tied, DoRA": {"target_modules": ["{attention}", "{embedding}"], "use_dora": True},
    "tied saved embedding": {"modules_to_save": ["{embedding}"]},
    "tied saved head": {"modules_to_save": ["{head}"]},
    "tied saved embedding and head": {"modules_to_save": ["{embedding}", "{head}"]},
    "tied saved embedding, all biases": {"modules_to_save": ["{embedding}"], "bias": "all"},
    "tied tokens": {"trainable_token_indices": {"{embedding}": [2, 3]}},
    "tied tokens of both": {"trainable_token_indices": {"{embedding}": [2, 3], "{head}": [2, 3]}},
}
TASKS = {f"{task}, bias {bias}": {"task_type": task, "bias": bias} for task in KINDS for bias in ("none", "all")}
TASKS["SEQ_CLS, own biases"] = {"task_type": "SEQ_CLS", "bias": "lora_only"}
TASKS["SEQ_CLS, all-linear, all biases"] = {"task_type": "SEQ_CLS", "bias": "all", "target_modules": "all-linear"}
EVERY = OPTIONS | TIED | TASKS

#: peft knows no tied modules but those, and ignores the head that it saved itself: see test_peft_tied
UNKNOWN_TO_PEFT = {"bloom", "falcon", "gpt2", "gpt_neox", "t5"}
#: what peft or transformers do not make
UNMADE = {
    ("gpt2", "OLoRA"),
    ("t5", "tied saved head"),
    ("t5", "tied saved embedding and head"),
    ("distilbert", "SEQ_CLS, all-linear, all biases"),
    *((family, f"TOKEN_CLS, bias {bias}") for family in ("gemma3", "gemma3_text", "opt") for bias in ("none", "all")),
    *(
        (family, f"QUESTION_ANS, bias {bias}")
        for family in ("gemma2", "gemma3", "gemma3_text", "phi3")
        for bias in ("none", "all")
    ),
}
#: the option that families differ in most
ALWAYS = "tied, ranks and alphas"


def applies(family, name):
    if "parameter" in name:
        return family in PARAMETERS
    if name == "replication":
        return family == "llama"
    if name in ("tied head", "tied embedding and head") and family in UNKNOWN_TO_PEFT:
        return False
    return (family, name) not in UNMADE


CASES = [(family, name) for family in FAMILIES for name in EVERY if applies(family, name)]


def filled(value, names):
    """A value of a config with the names of a family in it."""
    if isinstance(value, str):
        for key, name in names.items():
            value = value.replace(f"{{{key}}}", name)
        return value
    if isinstance(value, dict):
        return {filled(key, names): filled(item, names) for key, item in value.items()}
    return [filled(item, names) for item in value] if isinstance(value, list) else value


def keys_of(family, name):
    kinds = ("attention", "other", "embedding", "head", "norm", "stack")
    names = dict(zip(kinds, NAMES.get(family, LLAMAS), strict=True))
    keys = {"target_modules": ["{attention}", "{other}"]} | EVERY[name]
    return filled(keys, names) | ({"ensure_weight_tying": True} if name in TIED else {})


def converted(folder: Path, build, keys) -> Saved:
    """An adapter with a start of its own, saved as a plain LoRA."""
    base = build()
    base.config.save_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=7, **keys))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = keys["init_lora_weights"]
    trained(model).save_pretrained(folder / "adapter", path_initial_model_for_weight_conversion=folder / "start")
    return Saved(folder / "adapter", folder / "base", build, torch.empty(0))


@pytest.mark.parametrize(
    ("family", "name"), sampled(CASES, always=[(family, name) for family, name in CASES if name == ALWAYS])
)
def test_an_option(family, name, tmp_path):
    keys = keys_of(family, name)
    build = builder(family, tie=True if name in TIED else None, task=keys.get("task_type"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = name in ("PiSSA", "OLoRA")
        saved = converted(tmp_path, build, keys) if plain else save(tmp_path, family, build=build, **keys)
        report = adaptrix.check(saved.folder, saved.base)
        assert report.ok, report.problems
        assert {p.code for p in report.problems if p.severity == "warning"} <= {"config-mismatch"}
        back = round_trip(saved, tmp_path)
    same_tensors(saved.tensors, weights(back))
    same_config(saved.folder, back)
