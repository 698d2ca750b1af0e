"""Adapters of other tools are called what they are, and a whole model is not taken for one."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

import adaptrix

A, B = torch.ones(4, 8), torch.ones(8, 4)
UNET = "lora_unet_down_blocks_0_attn_to_q"
CASES = {
    "diffusers": ("pytorch_lora_weights.safetensors", {"unet.down.attn.to_q.lora_A.weight": A}),
    "diffusers by its tensors": ("style.safetensors", {"transformer.blocks.0.to_q.lora_A.weight": A}),
    "kohya": ("my.safetensors", {f"{UNET}.lora_down.weight": A, f"{UNET}.lora_up.weight": B}),
    "shards": ("adapter_model-00001-of-00002.safetensors", {"base_model.model.q_proj.lora_A.weight": A}),
}
WORDS = {"diffusers": "diffusers", "kohya": "kohya", "shards": "several shards"}


def refusal(path):
    (problem,) = [one for one in adaptrix.check(path).problems if one.severity == "error"]
    return problem


@pytest.mark.parametrize("config", [False, True], ids=["alone", "with a config"])
@pytest.mark.parametrize("case", CASES)
def test_folders_of_other_tools(case, config, tmp_path):
    name, tensors = CASES[case]
    save_file(tensors, tmp_path / name)
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora"}))
    problem = refusal(tmp_path)
    assert problem.code == "format-unknown"
    assert WORDS[case.split()[0]] in problem.found
    assert "Only half of the adapter" not in str(problem)


@pytest.mark.parametrize("case", CASES)
def test_files_of_other_tools(case, tmp_path):
    name, tensors = CASES[case]
    save_file(tensors, tmp_path / name)
    assert WORDS[case.split()[0]] in refusal(tmp_path / name).found


@pytest.mark.parametrize(
    ("name", "said"), [("training_args.bin", "arguments of a training"), ("x.npz", "numpy"), ("x.pt", "torch")]
)
def test_files_that_are_no_adapter(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"\0" * 100)
    assert said in refusal(tmp_path / name).found


def gguf(kind):
    """The beginning of a GGUF file, with ``general.type`` among its metadata."""
    key, value = (struct.pack("<Q", len(each)) + each for each in (b"general.type", kind))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<I", 8) + value


def test_loras_in_gguf_are_told_from_models(tmp_path):
    (tmp_path / "x.gguf").write_bytes(gguf(b"model"))
    assert refusal(tmp_path).code == refusal(tmp_path / "x.gguf").code == "full-model"
    (tmp_path / "lora.gguf").write_bytes(gguf(b"adapter"))  # the only adapter in a folder with a model
    assert {one.where for one in adaptrix.check(tmp_path).problems} >= {"adapter.type", "adapter.lora.alpha"}


def test_what_lies_beside_a_whole_model_does_not_change_what_it_is(tmp_path):
    save_file({"model.embed_tokens.weight": A}, tmp_path / "model.safetensors")
    for name in ("training_args.bin", "optimizer.pt", "cache.npz"):
        (tmp_path / name).write_bytes(b"\0" * 100)
    assert refusal(tmp_path).code == "full-model"
