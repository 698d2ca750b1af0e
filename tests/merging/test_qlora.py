"""Merging what was trained on NF4, with bitsandbytes' own modules as the judge of what NF4 leaves of a base."""

import json
import sys

import pytest
import torch

from adaptrix.merging.draft import draft
from adaptrix.merging.model_files import write_model
from adaptrix.merging.options import MergeOptions
from adaptrix.pipeline import Pipeline
from tests.helpers.command_line import placed
from tests.helpers.merge_models import as_torch, pair, tensors


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


def test_without_bitsandbytes(place, monkeypatch):
    made = pair(place.folder, targets=["q_proj"])
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, _, err = place.run("merge", made.adapter, "--base", made.base, "--qlora-base", "nf4", "-o", "out")
    assert code == 2
    assert 'pip install "adaptrix[qlora]"' in err
    assert place.run("merge", made.adapter, "--base", made.base, "--qlora-base", "bf16", "-o", "out")[0] == 0
    assert place.run("merge", made.adapter, "--base", made.base, "--qlora-base", "int8", "-o", "out")[0] == 2


def test_the_full_precision_is_an_ordinary_merge(tmp_path):
    made = pair(tmp_path, targets=["q_proj"])
    made.merge(tmp_path / "one")
    made.merge(tmp_path / "two", qlora_base="bf16")
    file = "model.safetensors"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def bnb():
    return pytest.importorskip("bitsandbytes", reason="an extra of its own")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_nf4_leaves_is_what_bitsandbytes_computes_with(family, tmp_path):
    functional = bnb().functional
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.pytorch_utils import Conv1D

    made = pair(tmp_path, family, dtype=torch.bfloat16, targets=["c_attn"] if family == "gpt2" else ["q_proj"])
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(made.base, quantization_config=config, dtype=torch.bfloat16)
    made_draft = draft(Pipeline(), str(made.adapter), str(made.base), MergeOptions())
    write_model(made_draft.base_alone(), tmp_path, None)
    found, plain = tensors(tmp_path), dict(made.model.get_base_model().named_modules())
    quantised = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    assert {f"{name}.weight" for name in quantised} == set(made_draft.linear)
    for name in quantised:
        weight = model.get_submodule(name).weight
        wanted = functional.dequantize_4bit(weight.data, weight.quant_state)
        turned = isinstance(plain.get(name), Conv1D) or family == "gpt2"
        assert torch.equal(as_torch(found[f"{name}.weight"]), wanted.T if turned else wanted), name


def test_the_merge_is_onto_those_numbers(tmp_path):
    bnb()
    made = pair(tmp_path, dtype=torch.bfloat16, shard="20KB", targets=["q_proj"])
    made_draft = draft(Pipeline(), str(made.adapter), str(made.base), MergeOptions())
    (tmp_path / "alone").mkdir()
    write_model(made_draft.base_alone(), tmp_path / "alone", None)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / "alone" / name).write_bytes((made.base / name).read_bytes())
    made.merge(tmp_path / "nf4", qlora_base="nf4")
    type(made)(tmp_path / "alone", made.adapter, made.model).merge(tmp_path / "plain")
    one, other = tensors(tmp_path / "nf4"), tensors(tmp_path / "plain")
    assert {name: tensor.tobytes() for name, tensor in one.items()} == {n: t.tobytes() for n, t in other.items()}


@pytest.mark.parametrize("chosen", ["bf16", "nf4"])
def test_both_are_told_beside_the_base_in_nf4(chosen, place):
    bnb()
    made = pair(place.folder, "llama", dtype=torch.bfloat16)
    options = ("--qlora-base", chosen, "--verify", "-o", "out", "--json")
    code, out, err = place.run("merge", made.adapter, "--base", made.base, *options)
    assert code == 0, err
    agreement = json.loads(out)["agreement"]
    assert agreement["kl_on"].keys() == {"bf16", "nf4"}
    assert agreement["kl"] == agreement["kl_on"][chosen]
    assert agreement["kl_on"]["nf4"] * 20 < agreement["kl_on"]["bf16"]
    assert sorted(path.name for path in (place.folder / "out").iterdir()) == ["out"]
