"""What is odd about a checkpoint of PEFT and harmless, and what is wrong with one: each by name, all at once."""

import json
import time

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from peft.utils.peft_types import PeftType

import adaptrix
from adaptrix.formats import peft_config
from adaptrix.formats.peft_config_keys import TYPES
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.odd_json import changed
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
P = "base_model.model."
Q0, Q1 = (f"{P}model.layers.{layer}.self_attn.q_proj." for layer in range(2))


@pytest.fixture
def saved(tmp_path):
    """Llama's q (18·out, wide) and v, rank 3."""
    return save(tmp_path, target_modules=QV)


@pytest.fixture(scope="module")
def any_saved(tmp_path_factory):
    keys = {"target_parameters": ["experts.down_proj"], "target_modules": ["o_proj"], "modules_to_save": ["norm"]}
    extra = {"layers_to_transform": [0, 1, 2], "exclude_modules": ["x"], "rank_pattern": {"o_proj": 2}}
    saved = save(tmp_path_factory.mktemp("any"), "mixtral", **keys, **extra)
    return saved.config | {"enable_lora": None, "layer_replication": [[0, 3]]}, saved.folder, saved.base


def codes(saved, base=True):
    problems = adaptrix.check(saved.folder, saved.base if base else None).problems
    return {problem.code for problem in problems if problem.severity == "error"}


# -- odd and harmless ----------------------------------------------------------------------------------------------

SPELLINGS = {
    "adapter name": lambda name: name.replace(".weight", ".default.weight") if "lora_" in name else name,
    "adapter name of a saved module": lambda name: name.replace("norm.weight", "norm.modules_to_save.default.weight"),
    "magnitude as a module": lambda name: name.replace("magnitude_vector", "magnitude_vector.default.weight"),
    "embedding with a name": lambda name: name + ".default" if "lora_embedding" in name else name,
    "no prefix": lambda name: name.removeprefix(P),
    "half the prefix twice": lambda name: P + name,
    "compiled": lambda name: "_orig_mod." + name,
    "compiled inside": lambda name: name.replace(P, P + "_orig_mod."),
    "compiled layers": lambda name: name.replace(".self_attn", "._orig_mod.self_attn"),
    "data parallel": lambda name: "module." + name,
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_in_the_wild(name, tmp_path):
    saved = save(tmp_path, target_modules=[*QV, "embed_tokens"], modules_to_save=["model.norm"], use_dora=True)
    today = saved.tensors
    rewrite(saved.folder, lambda tensors: {SPELLINGS[name](key): tensor for key, tensor in tensors.items()})
    assert saved.tensors.keys() != today.keys()
    problems = adaptrix.check(saved.folder, saved.base).problems
    assert {problem.code for problem in problems} <= {"tensor-name"}
    back = round_trip(saved, tmp_path)
    same_tensors(today, weights(back))
    assert torch.equal(logits(load(back, saved.build)), saved.logits)


def test_an_adapter_with_a_name_is_in_a_folder_of_it(tmp_path):
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=QV), adapter_name="style")
    model.save_pretrained(tmp_path)
    adapter = adaptrix.load(tmp_path)
    assert adapter.name == "style"
    assert len(adapter.deltas) == 6


#: what each version of peft wrote, of the keys that bear on the meaning
ERAS = {
    "0.0.1": {"merge_weights": False, "fan_in_fan_out": False, "enable_lora": None, "bias": "none"},
    "0.3": {"init_lora_weights": True, "modules_to_save": None, "revision": None},
    "0.6": {"rank_pattern": {}, "alpha_pattern": {}, "layers_pattern": None, "auto_mapping": None},
    "0.10": {"use_dora": False, "use_rslora": False, "megatron_core": "megatron.core", "loftq_config": {}},
    "0.15": {"exclude_modules": None, "eva_config": None, "lora_bias": False, "corda_config": None},
    "0.18": {"target_parameters": None, "arrow_config": None, "peft_version": "0.18.0", "use_qalora": False},
}


@pytest.mark.parametrize("era", ERAS)
def test_configs_of_every_age(era, saved, tmp_path):
    required = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": QV, "lora_dropout": 0.0}
    (saved.folder / CONFIG).write_text(json.dumps(required | ERAS[era]))
    assert_lossless(saved, tmp_path)


def test_unknown_keys_are_kept_and_mentioned(saved, tmp_path):
    rewrite(saved.folder, lora_telepathy={"on": True})
    report = adaptrix.check(saved.folder, saved.base)
    assert [(p.code, p.severity) for p in report.problems] == [("config-unknown", "note")]
    back = json.loads((round_trip(saved, tmp_path) / CONFIG).read_text())
    assert back["lora_telepathy"] == {"on": True}


KEYS = st.lists(
    st.from_regex(r"\A(\^?[ab1]{1,2}|\(a\|b\)|\.\*|[ab1][.][ab1]|\[ab\]1?){1,2}\Z"), max_size=4, unique=True
)


@given(KEYS, st.from_regex(r"\A[ab1]{1,2}([._][ab1]{1,2}){0,3}\Z"))
def test_patterns_match_as_in_peft(keys, path):
    table = {key: number + 1 for number, key in enumerate(keys)}
    config, problems = peft_config.parse({"peft_type": "LORA", "r": 99, "rank_pattern": table})
    assert problems == ()
    assert config.rank_of(path) == table.get(get_pattern_key(keys, path), 99)


def test_many_plain_patterns_cost_little():
    table = {f"model.layers.{layer}.mlp.experts.{e}.w1": 2 + e % 3 for layer in range(50) for e in range(200)}
    config, _ = peft_config.parse({"peft_type": "LORA", "rank_pattern": table})
    start = time.monotonic()
    assert {path: config.rank_of(path) for path in table} == table
    assert time.monotonic() - start < 2


# -- wrong ---------------------------------------------------------------------------------------------------------


def without(*ends):
    return lambda tensors: {name: t for name, t in tensors.items() if not name.endswith(ends)}


def with_(**changed):
    return lambda tensors: tensors | {Q0 + key.replace("_w", ".weight"): value for key, value in changed.items()}


def swapped(tensors):
    return {
        name.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B"): t for name, t in tensors.items()
    }


def full_model(tensors):
    return {name: t.detach().clone() for name, t in tiny_model("llama").state_dict().items() if "embed" not in name}


TENSORS = {
    "NaN": (with_(lora_A_w=torch.full((3, 24), float("nan"))), {"nonfinite"}),
    "Inf in bf16": (with_(lora_B_w=torch.full((60, 3), float("inf"), dtype=torch.bfloat16)), {"nonfinite"}),
    "int8": (with_(lora_A_w=torch.ones(3, 24, dtype=torch.int8)), {"dtype"}),
    "rank zero": (with_(lora_A_w=torch.ones(0, 24), lora_B_w=torch.ones(60, 0)), {"shape"}),
    "three dimensions": (with_(lora_A_w=torch.ones(3, 24, 1)), {"shape"}),
    "another rank": (with_(lora_A_w=torch.ones(4, 24), lora_B_w=torch.ones(60, 4)), {"rank"}),
    "ranks of its own": (with_(lora_A_w=torch.ones(4, 24)), {"rank"}),
    "too wide": (with_(lora_A_w=torch.ones(3, 25)), {"shape"}),
    "too high": (with_(lora_B_w=torch.ones(30, 3)), {"shape"}),
    "A and B swapped": (swapped, {"rank"}),
    "no B": (without("layers.1.self_attn.q_proj.lora_B.weight"), {"adapter-incomplete"}),
    "no A": (without("layers.1.self_attn.q_proj.lora_A.weight"), {"adapter-incomplete"}),
    "a module missing": (
        without(*(f"layers.1.self_attn.q_proj.lora_{x}.weight" for x in "AB")),
        {"adapter-incomplete"},
    ),
    "a layer missing": (lambda ts: {n: t for n, t in ts.items() if "layers.1" not in n}, {"adapter-incomplete"}),
    "the last layer missing": (lambda ts: {n: t for n, t in ts.items() if "layers.2" not in n}, {"adapter-incomplete"}),
    "a layer too many": (
        lambda ts: ts | {n.replace("layers.2", "layers.3"): t.clone() for n, t in ts.items() if "layers.2" in n},
        {"shape"},
    ),
    "a module no target": (
        lambda ts: ts | {n.replace("q_proj", "k_proj"): t[:20].clone() for n, t in ts.items() if "q_proj" in n},
        {"config-mismatch"},
    ),
    "a full model": (full_model, {"adapter-empty"}),
    "one tensor of the model": (lambda ts: ts | {f"{P}model.norm.weight": torch.ones(24)}, {"tensor-unexpected"}),
    "a magnitude without DoRA": (with_(lora_magnitude_vector=torch.ones(60)), {"config-mismatch"}),
    "a bias without lora_bias": (with_(**{"lora_B.bias": torch.ones(60)}), {"config-mismatch"}),
    "a bias of A": (with_(**{"lora_A.bias": torch.ones(3)}), {"tensor-unexpected"}),
    "one place twice": (lambda ts: ts | {Q0.removeprefix(P) + "lora_A.weight": torch.ones(3, 24)}, {"duplicate"}),
    "one place named and not": (with_(**{"lora_A.default_w": torch.ones(3, 24)}), {"duplicate"}),
    "one site twice": (
        lambda ts: ts | {n.replace("model.layers.0", "layers.0"): t.clone() for n, t in ts.items() if "layers.0" in n},
        {"duplicate"},
    ),
    "two adapters": (
        lambda ts: {n.replace(".weight", f".{a}.weight"): t.clone() for n, t in ts.items() for a in ("one", "two")},
        {"several-adapters"},
    ),
    "a path": (lambda ts: ts | {f"{P}model..q.lora_A.weight": torch.ones(3, 24)}, {"tensor-name"}),
    "no tensors": (lambda ts: {"": None}, {"adapter-empty"}),
    "another family": (
        lambda ts: {n.replace("model.layers", "model.decoder.layers"): t for n, t in ts.items()},
        {"site-missing"},
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_wrong_tensors(name, saved):
    change, expected = TENSORS[name]
    if name == "no tensors":
        (saved.folder / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    else:
        rewrite(saved.folder, change)
    assert codes(saved) == expected


SLOW = {f"(.|..)*[A-Z]{{{count}}}": 2 for count in range(1, 30)}  # each of them below the limit
CONFIGS = {
    "rank_pattern null": ({"rank_pattern": None}, {"config-value"}),
    "alpha_pattern null": ({"alpha_pattern": None}, {"config-value"}),
    "r a text": ({"r": "4"}, {"config-value"}),
    "r zero": ({"r": 0}, {"config-value"}),
    "r true": ({"r": True}, {"config-value"}),
    "another r": ({"r": 4}, {"rank"}),
    "alpha NaN": ({"lora_alpha": float("nan")}, {"config-value"}),
    "dropout NaN": ({"lora_dropout": float("nan"), "task_type": [float("inf")]}, {"config-value"}),
    "alpha huge": ({"lora_alpha": 10**400}, {"config-value"}),
    "alpha a text": ({"lora_alpha": "7"}, {"config-value"}),
    "DoRA promised": ({"use_dora": True}, {"config-mismatch"}),
    "biases promised": ({"lora_bias": True}, {"config-mismatch"}),
    "use_rslora 1": ({"use_rslora": 1}, {"config-value"}),
    "targets a table": ({"target_modules": {"q_proj": 1}}, {"config-value"}),
    "targets numbers": ({"target_modules": [1, 2]}, {"config-value"}),
    "parameters a number": ({"target_parameters": 5}, {"config-value"}),
    "parameters a text": ({"target_parameters": "q_proj"}, {"config-value"}),
    "saved modules a text": ({"modules_to_save": "norm"}, {"config-value"}),
    "layers a text": ({"layers_to_transform": "0,1"}, {"config-value"}),
    "layers null in a list": ({"layers_to_transform": [0, None]}, {"config-value"}),
    "patterns a list": ({"rank_pattern": ["q_proj"], "alpha_pattern": 3}, {"config-value"}),
    "a rank of zero": ({"rank_pattern": {"k_proj": 0}}, {"config-value"}),
    "a misspelt target": ({"target_modules": ["q_proj", "v_prj"]}, {"config-mismatch"}),
    "excluded": ({"exclude_modules": ["layers.1.self_attn.q_proj"]}, {"config-mismatch"}),
    "layers left out": ({"layers_to_transform": [0, 1]}, {"config-mismatch"}),
    "type missing": ({"peft_type": REMOVED}, {"peft-type"}),
    "type unknown": ({"peft_type": "MAGIC"}, {"peft-type"}),
    "type in lower case": ({"peft_type": "lora"}, {"peft-type"}),
    "type a number": ({"peft_type": 7}, {"peft-type"}),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, {"variant-unsupported"}),
    "QALoRA": ({"use_qalora": True}, {"variant-unsupported"}),
    "a slow pattern": ({"target_modules": "(.|..|...)*[A-Z]"}, {"config-value"}),
    "a pattern slow in sum": ({"target_modules": "(.|..)*[A-Z]|.*", "rank_pattern": SLOW}, {"config-value"}),
    "a slow rank": ({"rank_pattern": {"(.|..|...)*[A-Z]": 2}}, {"config-value"}),
    "no pattern": ({"target_modules": "q_proj("}, {"config-value"}),
    "replication a text": ({"layer_replication": "x"}, {"config-value"}),
    "replication of threes": ({"layer_replication": [[0, 1, 2]]}, {"config-value"}),
    "tokens a text": ({"trainable_token_indices": "y"}, {"config-value"}),
    "tokens of texts": ({"trainable_token_indices": {"embed_tokens": ["y"]}}, {"config-value"}),
    "layers_pattern a number": ({"layers_pattern": 5}, {"config-value"}),
    "tokens without rows": ({"trainable_token_indices": [3]}, {"adapter-incomplete"}),
    "a task without its head": ({"task_type": "SEQ_CLS"}, {"adapter-incomplete"}),
    "a slow layers_pattern": (
        {"layers_to_transform": [0, 1, 2], "layers_pattern": "(.|..|...)*[A-Z]"},
        {"config-value"},
    ),
    "enable_lora true": ({"enable_lora": True}, {"config-value"}),
    "bias any": ({"bias": "any"}, {"config-value"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_configs(name, saved):
    change, expected = CONFIGS[name]
    rewrite(saved.folder, **change)
    start = time.monotonic()
    assert codes(saved) == expected
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("kind", sorted(set(PeftType) - set(TYPES)))
def test_other_types_are_refused_by_name_with_what_can_be_done(kind, saved):
    rewrite(saved.folder, peft_type=kind)
    (problem,) = adaptrix.check(saved.folder, saved.base).problems
    assert problem.code == "peft-type"
    assert kind in problem.found
    assert "peft" in problem.remedy
    assert "No version" not in problem.remedy


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json-invalid"),
        ("[]", "json-invalid"),
        ("null", "json-invalid"),
        ("{", "json-invalid"),
        ('{"r": NaN', "json-invalid"),
        ('{"a": "\\ud800"}', "json-invalid"),
        ("[" * 100_000, "json-invalid"),
        ("<html>", "json-invalid"),
    ],
)
def test_a_config_that_is_none(text, code, saved):
    (saved.folder / CONFIG).write_text(text)
    assert codes(saved) == {code}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_config_is_a_crash(any_saved, data):
    raw, folder, base = any_saved
    for _ in range(data.draw(st.integers(1, 3))):
        raw = changed(raw, data.draw)
    (folder / CONFIG).write_text(json.dumps(raw))
    report = adaptrix.check(folder, base)
    assert report.ok or all(problem.found and problem.where for problem in report.problems)


def test_another_family_of_the_same_width(saved, tmp_path):
    config = tiny_config("opt")
    assert config.hidden_size == 24
    config.save_pretrained(tmp_path / "opt")
    report = adaptrix.check(saved.folder, tmp_path / "opt")
    assert {(p.code, p.severity) for p in report.problems} == {("site-missing", "error")}
    assert len(report.problems) == 1 + 6  # the cause, and each module


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("num_hidden_layers", 2, "shape"),
        ("num_hidden_layers", 5, "adapter-incomplete"),
        ("hidden_size", 30, "shape"),
        ("num_key_value_heads", 3, "shape"),
        ("head_dim", 12, "shape"),
    ],
)
def test_a_base_of_another_size(key, value, code, saved):
    config = json.loads((saved.base / "config.json").read_text())
    (saved.base / "config.json").write_text(json.dumps(config | {key: value}))
    assert codes(saved) == {code}


def test_every_fault_is_reported_at_once(saved):
    def change(ts):
        ts = {name: tensor for name, tensor in ts.items() if "layers.2.self_attn.q_proj" not in name}
        ts[Q0 + "lora_A.weight"] = torch.full((3, 24), float("nan"))
        ts[Q1 + "lora_A.weight"] = torch.ones(3, 25)
        ts[f"{P}model.norm.weight"] = torch.ones(24)
        ts[f"{P}model.layers.3.self_attn.q_proj.lora_A.weight"] = torch.ones(3, 24)
        ts[Q1.replace("q_proj", "v_proj") + "lora_B.weight"] = torch.ones(20, 3, dtype=torch.int8)
        return ts

    rewrite(saved.folder, change, bias="some", use_dora="no")
    expected = {"nonfinite", "shape", "tensor-unexpected", "adapter-incomplete", "dtype", "config-value"}
    assert codes(saved) == expected
    with pytest.raises(adaptrix.AdaptrixError) as caught:
        adaptrix.convert(saved.folder, saved.folder.parent / "out.adaptrix.safetensors", base=saved.base)
    assert {problem.code for problem in caught.value.problems} == expected
    assert not (saved.folder.parent / "out.adaptrix.safetensors").exists()


def test_a_swapped_pair_is_called_so_even_on_a_square_module(tmp_path):
    saved = save(tmp_path, "gpt2", target_modules=["attn.c_proj"])
    rewrite(saved.folder, swapped)
    problems = adaptrix.check(saved.folder, saved.base).problems
    assert {(p.code, p.remedy) for p in problems} == {("rank", "A and B are swapped.")}


def test_a_missing_half(saved):
    (saved.folder / WEIGHTS).unlink()
    assert codes(saved) == {"adapter-weights-missing"}


def test_whole_numbers_written_as_floats_are_whole_numbers(saved):
    config = json.loads((saved.base / "config.json").read_text())
    floats = {key: float(value) for key, value in config.items() if type(value) is int}
    assert floats["head_dim"] == 10.0
    (saved.base / "config.json").write_text(json.dumps(config | floats))
    assert codes(saved) == set()
    (saved.base / "config.json").write_text(json.dumps(config | {"head_dim": 10.5}))
    assert "base-config" in codes(saved)


@pytest.mark.parametrize("good", ["no base", "no targets"])
def test_nothing_good_is_refused(good, saved):
    if good == "no targets":
        rewrite(saved.folder, target_modules=None)
    assert codes(saved, base=good != "no base") == set()
