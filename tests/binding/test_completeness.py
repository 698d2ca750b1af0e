"""What a checkpoint lacks of what its config promises is an error by name, and nothing good is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import adaptrix
from adaptrix.architecture.dims import Dims
from adaptrix.binding.bind import bind
from adaptrix.binding.identify import Identity
from adaptrix.errors import errors_in
from tests.helpers.families import architecture, tiny_config, tiny_model
from tests.helpers.heads import head
from tests.helpers.peft_models import CONFIG, WEIGHTS, rewrite, round_trip, same_tensors, save, weights

QV = ["q_proj", "v_proj"]


def errors(folder, base=None):
    return {p.code for p in adaptrix.check(folder, base).problems if p.severity == "error"}


def without(*parts):
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


# -- modules that peft adapts, one by one ----------------------------------------------------------------------------

GONE = {
    "a digit in a target": ("opt", {"target_modules": ["q_proj", "fc1"]}, "layers.1.self_attn.q_proj"),
    "the one with the digit": ("opt", {"target_modules": ["q_proj", "fc1"]}, "layers.1.fc1"),
    "lin1": ("distilbert", {"target_modules": ["q_lin", "lin1"]}, "layer.1.ffn.lin1"),
    "wi_0": ("t5-gated", {"target_modules": ["q", "wi_0"]}, "decoder.block.1.layer.2.DenseReluDense.wi_0"),
    "all of wi_1": ("t5-gated", {"target_modules": ["q", "wi_0", "wi_1"]}, ".wi_1."),
    "all of a name": ("llama", {"target_modules": QV}, "v_proj"),
    "all of a name elsewhere": ("llama", {"target_modules": ["q_proj", "up_proj"]}, "up_proj"),
    "all of one place of a name": ("bert", {"target_modules": ["dense"]}, "intermediate.dense"),
    "a regex": ("llama", {"target_modules": r".*\.(q_proj|v_proj)"}, "layers.1.self_attn.v_proj"),
    "the last layer of a regex": ("llama", {"target_modules": r".*\.(q_proj|v_proj)"}, "layers.2.self_attn.v_proj"),
    "all-linear": ("llama", {"target_modules": "all-linear"}, "layers.1.self_attn.v_proj"),
    "all-linear of Conv1D": ("gpt2", {"target_modules": "all-linear"}, "h.1.mlp.c_fc"),
    "full paths": ("llama", {"target_modules": [f"model.layers.{i}.mlp.up_proj" for i in range(3)]}, "layers.2"),
    "some layers": ("llama", {"target_modules": QV, "layers_to_transform": [0, 2]}, "layers.2.self_attn.q_proj"),
    "some layers of a pattern": (
        "gpt2",
        {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [0, 2], "layers_pattern": "h"},
        "h.2.attn.c_attn",
    ),
    "an exclusion": (
        "llama",
        {"target_modules": QV, "exclude_modules": ["layers.0.self_attn.q_proj"]},
        "layers.1.self_attn.q_proj",
    ),
    "replication": (
        "llama",
        {"target_modules": QV, "layer_replication": [[0, 2], [1, 3]]},
        "layers.3.self_attn.q_proj",
    ),
    "a parameter": ("mixtral", {"target_parameters": ["experts.down_proj"], "target_modules": ["q_proj"]}, "1.mlp"),
}


def built(family, **keys):
    return (lambda: tiny_model("t5", variant=1)) if family == "t5-gated" else (lambda: tiny_model(family))


@pytest.mark.parametrize("name", GONE)
def test_a_module_gone(name, tmp_path):
    family, keys, gone = GONE[name]
    saved = save(tmp_path, build=built(family), **keys)
    rewrite(saved.folder, **{key: value for key, value in keys.items() if value == "all-linear"})
    before = len(saved.tensors)
    assert errors(saved.folder, saved.base) == set()
    rewrite(saved.folder, without(gone))
    assert 0 < len(saved.tensors) < before
    assert errors(saved.folder, saved.base) == {"adapter-incomplete"}


def test_a_layer_gone_of_a_bare_model(tmp_path):
    saved = save(tmp_path, target_modules=r".*layers\.\d\.self_attn\.(q|v)_proj")
    strip = lambda tensors: {name.replace(".model.model.", ".model."): t for name, t in tensors.items()}  # noqa: E731
    rewrite(saved.folder, strip, target_modules=r"layers\.\d\.self_attn\.(q|v)_proj")
    assert errors(saved.folder, saved.base) == set()
    rewrite(saved.folder, without("layers.1.self_attn.v_proj"))
    assert errors(saved.folder, saved.base) == {"adapter-incomplete"}


def test_all_that_is_gone_is_said(tmp_path):
    saved = save(tmp_path, target_modules=QV)
    rewrite(saved.folder, without("layers.0.self_attn.v", "layers.1.self_attn.v", "layers.2.self_attn.q"))
    said = {(p.where, p.found) for p in adaptrix.check(saved.folder, saved.base).problems if p.severity == "error"}
    assert said == {("q", "no tensors for layers 2"), ("v", "no tensors for layers 0-1")}


# -- experts one by one ----------------------------------------------------------------------------------------------


def experts_apart(folder, family="mixtral", layers=(0, 1, 2), experts=range(3)):
    names = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2", 40), "qwen3_moe": ("mlp", *GATED, 24)}[family]
    owner, gate, up, down, inner = names
    hidden = tiny_config(family).hidden_size
    tensors = {}
    for layer in layers:
        for expert in experts:
            for name, (out, inp) in {gate: (inner, hidden), up: (inner, hidden), down: (hidden, inner)}.items():
                stem = f"base_model.model.model.layers.{layer}.{owner}.experts.{expert}.{name}.lora_"
                tensors |= {f"{stem}A.weight": torch.ones(2, inp), f"{stem}B.weight": torch.ones(out, 2)}
    (folder / "old").mkdir()
    save_file(tensors, folder / "old" / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [gate, up, down]}
    (folder / "old" / CONFIG).write_text(json.dumps(config))
    tiny_config(family).save_pretrained(folder / "base")
    return folder / "old", folder / "base"


GATED = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("family", "gone"),
    [
        ("mixtral", ["layers.1.block_sparse_moe.experts.1."]),
        ("mixtral", [f"layers.1.block_sparse_moe.experts.{e}.w3" for e in range(3)]),
        ("mixtral", ["w3"]),
        ("mixtral", ["layers.2"]),
        ("qwen3_moe", ["layers.0.mlp.experts.1."]),
        ("qwen3_moe", [f"layers.2.mlp.experts.{e}.up_proj" for e in range(5)]),
    ],
)
def test_an_expert_gone(family, gone, tmp_path):
    count, layers = {"mixtral": (3, (0, 1, 2)), "qwen3_moe": (5, (0, 2))}[family]
    folder, base = experts_apart(tmp_path, family, layers, range(count))
    assert errors(folder, base) == set()
    rewrite(folder, without(*gone))
    assert errors(folder, base) == {"adapter-incomplete"}


def test_an_expert_too_many(tmp_path):
    folder, base = experts_apart(tmp_path, experts=(0, 1, 2, 9))
    assert errors(folder, base) == {"shape"}


def test_a_family_that_does_not_count_its_experts(tmp_path):
    folder, _ = experts_apart(tmp_path)
    mixtral = architecture("mixtral")
    roles = {name: replace(role, experts=None) for name, role in mixtral.roles.items()}
    identity = Identity(replace(mixtral, roles=roles), Dims(), known=True)
    assert errors_in(bind(adaptrix.load(folder), identity).problems) == ()


# -- other promises --------------------------------------------------------------------------------------------------


def test_a_head_gone(tmp_path):
    saved = save(tmp_path, build=head("SequenceClassification", "llama"), task_type="SEQ_CLS", target_modules=QV)
    assert errors(saved.folder, saved.base) == set()
    rewrite(saved.folder, without("score.weight"))
    assert errors(saved.folder, saved.base) == {"adapter-incomplete"}


def test_trained_tokens(tmp_path):
    saved = save(tmp_path, target_modules=QV, trainable_token_indices=[1, 5, 9])
    whole = saved.tensors
    assert errors(saved.folder, saved.base) == set()
    rewrite(saved.folder, lambda ts: {n: t[:2] if "token_adapter" in n else t for n, t in ts.items()})
    assert errors(saved.folder, saved.base) == {"config-mismatch"}
    rewrite(saved.folder, trainable_token_indices=None)
    assert errors(saved.folder, saved.base) == {"config-mismatch"}
    rewrite(saved.folder, without("token_adapter"))
    assert errors(saved.folder, saved.base) == set()
    rewrite(saved.folder, trainable_token_indices={"embed_tokens": [1, 5, 9]})
    assert errors(saved.folder, saved.base) == {"adapter-incomplete"}
    assert len(whole) == len(saved.tensors) + 1


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_gone(bias, tmp_path):
    saved = save(tmp_path, "gpt2", target_modules=["c_attn"], bias=bias)
    rewrite(saved.folder, without("h.1.attn.c_attn.base_layer.bias"))
    assert errors(saved.folder, saved.base) == {"adapter-incomplete"}
    rewrite(saved.folder, without("bias"))
    problems = adaptrix.check(saved.folder, saved.base).problems
    assert [(p.code, p.severity) for p in problems] == [("config-mismatch", "warning")]


@pytest.mark.parametrize("gone", [["experts.lora_", "experts.base_layer"], ["experts.base_layer"]])
def test_parameters_gone(gone, tmp_path):
    names = ["experts.gate_up_proj", "experts.down_proj"]
    saved = save(tmp_path, "mixtral", target_parameters=names, target_modules=["q_proj"])
    rewrite(saved.folder, without(*gone))
    assert "adapter-incomplete" in errors(saved.folder, saved.base)


# -- nothing good is refused -----------------------------------------------------------------------------------------

GOOD = {
    "a list for every family": ("llama", {"target_modules": ["q_proj", "v_proj", "c_attn", "query_key_value", "wi"]}),
    "T5's list on a gated one": ("t5-gated", {"target_modules": ["q", "v", "wi", "wi_0", "wi_1", "wo"]}),
    "wi on a gated one": ("t5-gated", {"target_modules": ["q", "wi", "wo"]}),
    "GPT-2 without cross attention": ("gpt2", {"target_modules": ["c_attn", "q_attn", "c_proj"]}),
    "names of dense layers": ("mixtral", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    "a parameter beside a list": (
        "mixtral",
        {"target_modules": ["q_proj", "down_proj"], "target_parameters": ["experts.gate_up_proj"]},
    ),
    "layers that differ": ("qwen3_moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    "one stack": ("t5", {"target_modules": r"encoder\..*\.(q|v)"}),
    "cross attention alone": ("t5", {"target_modules": r".*EncDecAttention\.(q|v)"}),
    "a head of a task": ("llama", {"target_modules": "all-linear"}),
    "biases where there are none": ("llama", {"target_modules": QV, "bias": "all"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_whole(name, tmp_path):
    family, keys = GOOD[name]
    saved = save(tmp_path, build=built(family), **keys)
    rewrite(saved.folder, target_modules=keys["target_modules"])
    assert errors(saved.folder, saved.base) == set()
    assert errors(saved.folder) == set()


def test_what_was_pruned_is_whole(tmp_path):
    saved = save(tmp_path, target_modules=QV)
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base, layers="1", prune=True)
    folder = adaptrix.convert(file, tmp_path / "back", to="peft")
    assert errors(file) == errors(folder) == errors(folder, saved.base) == set()


def test_a_huge_number_of_experts_is_not_counted_to(tmp_path):
    folder, base = experts_apart(tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_local_experts": 1 << 35, "num_hidden_layers": 99_999}))
    assert errors(folder, base) == {"adapter-incomplete"}


# -- the modules of other parts of a multimodal model ----------------------------------------------------------------


def test_a_multimodal_adapter_keeps_what_its_text_model_does_not_know(tmp_path):
    saved = save(tmp_path, target_modules=QV)
    rename = {"model.model.layers": "model.model.language_model.layers"}
    projector = "base_model.model.model.multi_modal_projector.linear_1.lora_"

    def multimodal(tensors):
        ((old, new),) = rename.items()
        moved = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        return moved | {f"{projector}A.weight": torch.ones(3, 14), f"{projector}B.weight": torch.ones(24, 3)}

    rewrite(saved.folder, multimodal, target_modules=[*QV, "linear_1"])
    text = tiny_config("llama").to_dict()
    (saved.base / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    report = adaptrix.check(saved.folder, saved.base)
    assert {(p.code, p.severity) for p in report.problems} == {("unverified", "warning")}
    assert {str(s) for s in report.bound.deltas} >= {"modules.model.multi_modal_projector.linear_1", "layers.0.q"}
    same_tensors(saved.tensors, weights(round_trip(saved, tmp_path)))
    rewrite(
        saved.folder,
        lambda ts: {n: torch.ones(3, 25) if "0.self_attn.q_proj.lora_A" in n else t for n, t in ts.items()},
    )
    assert errors(saved.folder, saved.base) == {"shape"}


def test_an_adapter_is_shown_in_short(tmp_path):
    saved = save(tmp_path, target_modules=QV)
    assert repr(adaptrix.load(saved.folder)) == "<Adapter 'adapter': 6 deltas, 0 extras, 0 problems>"
