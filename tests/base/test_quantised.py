"""Bases whose weights are codes: refused for that one reason, whatever their config says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptrix.base.checkpoint import open_base
from adaptrix.base.quantised import quantised
from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair


@pytest.fixture
def made(tmp_path):
    return pair(tmp_path, "llama", targets=["q_proj", "down_proj"])


def rewrite(base, change):
    file = base / "model.safetensors"
    held = load_file(file)
    change(held)
    save_file(held, file, {"format": "pt"})


def fp8(held):
    for name in [name for name in held if name.endswith("_proj.weight")]:
        held[name] = held[name].to(torch.float8_e4m3fn)


def fp8_with_scales(held):
    fp8(held)
    for name in [name for name in held if name.endswith("_proj.weight")]:
        held[name + "_scale_inv"] = torch.ones(1, 1)


def gptq(held):
    for name in [name for name in held if name.endswith("_proj.weight")]:
        out, inp = held.pop(name).shape
        path = name.removesuffix(".weight")
        held[f"{path}.qweight"] = torch.zeros(max(1, inp // 8), out, dtype=torch.int32)
        held[f"{path}.qzeros"] = torch.zeros(1, max(1, out // 8), dtype=torch.int32)
        held[f"{path}.scales"] = torch.ones(1, out, dtype=torch.float16)
        held[f"{path}.g_idx"] = torch.zeros(inp, dtype=torch.int32)


def nf4(held):
    for name in [name for name in held if name.endswith("_proj.weight")]:
        held[f"{name}.absmax"] = torch.ones(held[name].numel() // 2, dtype=torch.uint8)
        held[f"{name}.quant_map"] = torch.ones(16)
        held[name] = torch.zeros(held[name].numel() // 2, 1, dtype=torch.uint8)


@pytest.mark.parametrize("change", [fp8, fp8_with_scales, gptq, nf4])
@pytest.mark.parametrize("stated", [False, True])
def test_one_reason_for_all_modules(change, stated, made, tmp_path):
    rewrite(made.base, change)
    if stated:
        file = made.base / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(RefusedError) as refused:
        made.merge(tmp_path / "out")
    (problem,) = refused.value.problems
    assert problem.code == "quantised"
    assert ("though its config does not say so" in problem.found) is not stated
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.scale", "model.layers.0.mlp.biases", "model.embed_scales"])
def test_other_names_are_no_sign_of_codes(name, made):
    rewrite(made.base, lambda held: held.update({name: torch.ones(3)}))
    config = json.loads((made.base / "config.json").read_text())
    assert list(quantised(open_base(made.base, "base", config))) == []
    assert made.merge(made.base.parent / "out").changed
