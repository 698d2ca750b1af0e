"""Checkpoints whose tensors share one cause: one problem that names it, with advice that does no harm."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import adaptrix
from tests.helpers.merge_models import pair


@pytest.fixture
def made(tmp_path):
    return pair(tmp_path, "llama", targets=["q_proj", "down_proj"], r=4)


def changed(made, change, **config):
    file = made.adapter / "adapter_model.safetensors"
    held = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(held).items()}, file, {"format": "pt"})
    told = made.adapter / "adapter_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | config))
    return [problem for problem in adaptrix.check(made.adapter, made.base).problems if problem.severity == "error"]


@pytest.mark.parametrize("empty", [lambda t: torch.empty(0), lambda t: t[:0]], ids=["flat", "no rows"])
def test_tensors_that_zero_3_has_not_gathered(made, empty):
    (problem,) = changed(made, lambda held: {name: empty(tensor) for name, tensor in held.items()})
    assert "the factors of all 6 modules are empty, as DeepSpeed ZeRO-3" in problem.found
    assert "gathered" in problem.remedy


@pytest.mark.parametrize("shards", [2, 4])
def test_slices_of_one_process(made, shards):
    (problem,) = changed(made, lambda held: {name: one[: len(one) // shards] for name, one in held.items()})
    assert "slices of one process, as FSDP" in problem.found
    assert "full_state_dict=True" in problem.remedy
    assert "rank_pattern" not in str(problem)


def test_one_tensor_that_is_cut_is_no_sign_of_sharding(made):
    def change(held):
        name = next(iter(held))
        return held | {name: held[name][:2]}

    said = " ".join(map(str, changed(made, change)))
    assert "FSDP" not in said
    assert "ZeRO" not in said


def test_stacks_of_experts(made):
    def change(held):
        stem = "base_model.model.model.layers.0.mlp.experts.w1"
        return held | {f"{stem}.lora_A.weight": torch.ones(1, 4, 24), f"{stem}.lora_B.weight": torch.ones(3, 40, 4)}

    problems = changed(made, change, target_modules="all-linear")
    assert ["Tinker" in problem.found for problem in problems] == [True]


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 3, 3)])
def test_loras_of_convolutions(made, kernel):
    def change(held):
        stem, ones = "base_model.model.model.conv", (1,) * len(kernel)
        return held | {
            f"{stem}.lora_A.weight": torch.ones(4, 8, *kernel),
            f"{stem}.lora_B.weight": torch.ones(16, 4, *ones),
        }

    problems = changed(made, change, target_modules=["q_proj", "down_proj", "conv"])
    assert ["are convolutions" in problem.found for problem in problems] == [True]
