"""Every way that peft trains a LoRA goes there and back; peft is the judge."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.heads import head
from tests.helpers.peft_models import (
    CONFIG,
    REMOVED,
    WEIGHTS,
    assert_lossless,
    load,
    logits,
    rewrite,
    round_trip,
    same_tensors,
    save,
    weights,
)

QV = ["q_proj", "v_proj"]


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


def test_a_resized_vocabulary_is_said_and_kept(tmp_path):
    def resized():
        model = tiny_model("llama")
        model.resize_token_embeddings(72)
        return model

    saved = save(tmp_path, build=resized, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    tiny_config("llama").save_pretrained(saved.base)
    report = adaptrix.check(saved.folder, saved.base)
    assert [(p.code, p.severity) for p in report.problems] == [("vocabulary", "note")]
    back = round_trip(saved, tmp_path)
    same_tensors(saved.tensors, weights(back))
    assert torch.equal(logits(load(back, resized)), saved.logits)


def test_bytes_pass_through_whatever_the_dtype(tmp_path):
    saved = save(tmp_path, target_modules=QV)
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
    kinds = iter(dtypes * 9)
    rewrite(saved.folder, lambda tensors: {name: tensor.to(next(kinds)) for name, tensor in tensors.items()})
    assert {tensor.dtype for tensor in saved.tensors.values()} >= {"F16", "BF16", "F64", "F8_E4M3", "F8_E5M2"}
    same_tensors(saved.tensors, weights(round_trip(saved, tmp_path)))


def test_bin_holds_the_same(tmp_path):
    saved = save(tmp_path, "gpt2", target_modules=["c_attn", "wte"], use_dora=True)
    tensors = saved.tensors
    model = peft.PeftModel.from_pretrained(saved.build(), saved.folder)
    (saved.folder / WEIGHTS).unlink()
    model.save_pretrained(saved.folder, safe_serialization=False)
    assert (saved.folder / "adapter_model.bin").exists()
    same_tensors(tensors, weights(round_trip(saved, tmp_path)))


def test_biases_of_before_peft_0_7_are_written_where_peft_looks_today(tmp_path):
    saved = save(tmp_path, "gpt2", target_modules=["c_attn"], bias="all")
    today = saved.tensors
    rewrite(saved.folder, lambda ts: {name.replace("base_layer.bias", "bias"): t for name, t in ts.items()})
    assert saved.tensors.keys() != today.keys()
    back = round_trip(saved, tmp_path)
    same_tensors(today, weights(back))
    assert torch.equal(logits(load(back, saved.build)), saved.logits)


# -- MergedLinear: peft before 0.3, a grouped convolution over enabled thirds of a fused weight ------------------

LEGACY = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": 2,
    "lora_alpha": 5,
    "lora_dropout": 0.0,
    "merge_weights": False,
    "bias": "none",
    "inference_mode": True,
}


def merged_linear(A, B, enabled, out):
    """ΔW ``[out, in]`` as peft 0.2 merges it: lora_B is ``Conv1d(r * sum(enabled), …, groups=…)`` on lora_A."""
    delta = torch.nn.functional.conv1d(A[None], B, groups=sum(enabled))[0]
    padded = torch.zeros(len(enabled), out // len(enabled), A.shape[1])
    padded[torch.tensor(enabled)] = delta.reshape(sum(enabled), -1, A.shape[1])
    return 5 / 2 * padded.reshape(out, -1)


@pytest.mark.parametrize("enabled", [[True, False, True], [False, True, False], [True, True, True]])
@pytest.mark.parametrize(("family", "name"), [("gpt2", "c_attn"), ("bloom", "query_key_value")])
def test_merged_linear(family, name, enabled, tmp_path):
    model, generator, tensors = tiny_model(family), torch.Generator().manual_seed(2), {}
    conv1d = family == "gpt2"
    for path, module in model.named_modules():
        if path.endswith(name):
            out, inp = module.weight.shape[::-1] if conv1d else module.weight.shape
            A = torch.randn(2 * sum(enabled), inp, generator=generator)
            B = torch.randn(out // 3 * sum(enabled), 2, 1, generator=generator)
            delta = merged_linear(A, B, enabled, out)
            module.weight.data += delta.T if conv1d else delta
            tensors |= {f"base_model.model.{path}.lora_{x}.weight": t for x, t in (("A", A), ("B", B))}
    old = tmp_path / "old"
    old.mkdir()
    save_file(tensors, old / WEIGHTS)
    keys = {"enable_lora": enabled, "target_modules": [name], "fan_in_fan_out": conv1d}
    (old / CONFIG).write_text(json.dumps(LEGACY | keys))
    model.config.save_pretrained(tmp_path / "base")
    report = adaptrix.check(old, tmp_path / "base")
    assert report.problems == ()
    assert {site.part for site in report.bound.deltas} == {
        ("qkv" if conv1d else ["slot0", "slot1", "slot2"])[i] for i, on in enumerate(enabled) if on
    }
    file = adaptrix.convert(old, tmp_path / "one.adaptrix.safetensors", base=tmp_path / "base")
    adapted = load(adaptrix.convert(file, tmp_path / "back", to="peft"), lambda: tiny_model(family))
    torch.testing.assert_close(logits(adapted), logits(model), rtol=1e-4, atol=1e-5)
    merged = dict(adapted.merge_and_unload().named_parameters())
    for path, weight in model.named_parameters():
        torch.testing.assert_close(merged[path], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "extra"), [({"use_dora": True}, "lora_magnitude_vector"), ({"lora_bias": True}, "lora_B.bias")]
)
def test_merged_linear_has_nothing_else(keys, extra, tmp_path):
    stem = "base_model.model.transformer.h.0.attn.c_attn."
    A, B = torch.ones(4, 24), torch.ones(48, 2, 1)
    tensors = {f"{stem}lora_A.weight": A, f"{stem}lora_B.weight": B, f"{stem}{extra}": torch.ones(72)}
    save_file(tensors, tmp_path / WEIGHTS)
    config = LEGACY | {"enable_lora": [True, False, True], "target_modules": ["c_attn"]} | keys
    (tmp_path / CONFIG).write_text(json.dumps(config))
    report = adaptrix.check(tmp_path)
    assert {problem.code for problem in report.problems if problem.severity == "error"} == {"tensor-unexpected"}


# -- parameters of modules with modules inside -------------------------------------------------------------------


def test_modules_inside_a_module_with_a_wrapped_parameter(tmp_path):
    def build():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("mamba", **MAMBA)).eval()

    keys = {"target_parameters": ["mixer.A_log"], "target_modules": ["x_proj", "dt_proj"]}
    saved = save(tmp_path, build=build, **keys, bias="all")
    assert any(".mixer.base_layer.x_proj.lora_A" in name for name in saved.tensors)
    report = adaptrix.check(saved.folder, saved.base)
    assert [str(problem) for problem in report.problems if problem.severity != "note"] == []
    assert "backbone.layers.0.mixer.x_proj" in {target.path for target in report.bound.targets.values()}
    back = round_trip(saved, tmp_path)
    same_tensors(saved.tensors, weights(back))
    assert torch.equal(logits(load(back, saved.build)), saved.logits)
    rewrite(saved.folder, lambda ts: {n: t for n, t in ts.items() if "layers.1.mixer.base_layer.x_proj" not in n})
    assert {p.code for p in adaptrix.check(saved.folder, saved.base).problems if p.severity == "error"} == {
        "adapter-incomplete"
    }


MAMBA = {"hidden_size": 20, "state_size": 7, "time_step_rank": 3, "vocab_size": 71, "num_hidden_layers": 2}


# -- experts -----------------------------------------------------------------------------------------------------


def transposed(tensors, experts=3):
    """The factors as peft wrote them until 0.18, when A was ``[E·r, out]`` and B ``[in, r·E]``."""
    old = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition("lora_A")
        if stem and "experts" in name:
            A, B = tensor, tensors[f"{stem}lora_B{leaf}"]
            A, B = A.reshape(experts, -1, A.shape[1]), B.reshape(B.shape[0], -1, experts)
            old[name] = B.permute(2, 1, 0).reshape(-1, B.shape[0])
            old[f"{stem}lora_B{leaf}"] = A.permute(2, 1, 0).reshape(A.shape[2], -1)
    return tensors | old


def test_the_old_layout_is_the_one_peft_had(tmp_path):
    saved = save(tmp_path, "mixtral", target_parameters=["experts.down_proj"])
    rewrite(saved.folder, transposed)
    stem = "base_model.model.model.layers.0.mlp.experts.lora_"
    A, B = (torch.tensor(saved.tensors[f"{stem}{x}.weight"].numpy()) for x in "AB")
    assert (A.shape, B.shape) == ((9, 24), (40, 9))  # in_features, out_features = the parameter's last two sizes
    by_018 = torch.einsum("o r e, e r i -> e i o", B.reshape(40, 3, 3), A.reshape(3, 3, 24)) * 7 / 3
    np.testing.assert_allclose(by_018, saved.deltas["model.layers.0.mlp.experts.down_proj"], atol=1e-6)


def square_mixtral():
    """A mixtral whose experts' down projection is square, so that no shape tells its layout."""
    config = tiny_config("mixtral")
    config.intermediate_size = config.hidden_size
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(config).eval()


EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": ["q_proj"]}


@pytest.mark.parametrize("version", ["0.18.1", "0.21.2", REMOVED])
@pytest.mark.parametrize("shape", ["oblong", "square"])
def test_transposed_experts(version, shape, tmp_path):
    saved = save(tmp_path, "mixtral", build=square_mixtral if shape == "square" else None, **EXPERTS)
    rewrite(saved.folder, transposed, peft_version=version)
    if shape == "square" and version is REMOVED:
        report = adaptrix.check(saved.folder, saved.base)
        assert {p.code for p in report.problems} == {"ambiguous"}
        assert {p.where for p in report.problems} == {"expert_down"}  # gate_up tells by its shape
        return
    back = round_trip(saved, tmp_path)
    loaded = logits(peft.PeftModel.from_pretrained(saved.build(), back).eval())
    told = shape == "oblong" or version == "0.18.1"
    assert torch.equal(loaded, saved.logits) == told  # a square one that says 0.21 is believed
    assert json.loads((back / CONFIG).read_text())["peft_version"] == "0.19.1"


@pytest.mark.parametrize("version", ["0.19.0", "0.18.2.dev0@abc", "new", None])
def test_a_version_that_tells_nothing(version, tmp_path):
    saved = save(tmp_path, "mixtral", build=square_mixtral, target_parameters=["experts.down_proj"])
    rewrite(saved.folder, peft_version=version)
    with pytest.raises(RefusedError, match="peft_version"):
        adaptrix.convert(saved.folder, tmp_path / "out.adaptrix.safetensors", base=saved.base)


def test_experts_one_by_one_as_transformers_4_had_them(tmp_path):
    """peft 0.21 fuses w1 and w3 on loading; the checkpoint keeps them apart, and so does the way there and back."""
    model, generator, tensors = tiny_model("mixtral"), torch.Generator().manual_seed(3), {}
    for layer, block in enumerate(model.model.layers):
        experts = block.mlp.experts
        for expert in range(3):
            deltas = {}
            for name, (out, inp) in {"w1": (40, 24), "w2": (24, 40), "w3": (40, 24)}.items():
                A, B = (0.3 * torch.randn(*size, generator=generator) for size in ((2, inp), (out, 2)))
                stem = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.lora_"
                tensors |= {f"{stem}A.weight": A, f"{stem}B.weight": B}
                deltas[name] = 5 / 2 * B @ A
            experts.gate_up_proj.data[expert] += torch.cat([deltas["w1"], deltas["w3"]])
            experts.down_proj.data[expert] += deltas["w2"]
    old = tmp_path / "old"
    old.mkdir()
    save_file(tensors, old / WEIGHTS)
    (old / CONFIG).write_text(json.dumps(LEGACY | {"target_modules": ["w1", "w2", "w3"]}))
    model.config.save_pretrained(tmp_path / "base")
    report = adaptrix.check(old, tmp_path / "base")
    assert report.problems == ()
    assert {(s.part, s.expert) for s in report.bound.deltas} == {(p, e) for p in ("gate", "up", None) for e in range(3)}
    file = adaptrix.convert(old, tmp_path / "one.adaptrix.safetensors", base=tmp_path / "base")
    back = adaptrix.convert(file, tmp_path / "back", to="peft")
    same_tensors(weights(old), weights(back))
    adapted = peft.PeftModel.from_pretrained(tiny_model("mixtral"), back)
    torch.testing.assert_close(logits(adapted), logits(model), rtol=1e-4, atol=1e-5)
