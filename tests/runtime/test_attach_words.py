"""Errors of attach and load recommend what can be done in Python, with the model that is there."""

import re

import pytest
from safetensors.torch import load_file, save_file

from adaptrix.attaching import attach
from adaptrix.errors import AdaptrixError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model


def spoilt(folder, change):
    """An adapter whose tensors were changed."""
    saved(tiny_model("llama"), folder, target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    save_file({name: change(name, tensor) for name, tensor in load_file(path).items()}, path)
    return folder


CASES = {
    "narrow": (lambda _, tensor: tensor[:, :-1].contiguous() if tensor.shape[0] == 3 else tensor, None),
    "nan": (lambda _, tensor: tensor * float("nan"), None),
    "policy": (lambda _, tensor: tensor, "fit:2"),
    "none": (lambda _, tensor: tensor, "90-95"),
    "word": (lambda _, tensor: tensor, "centre"),
}


def brought(model, folder, way, layers=None):
    """Brings an adapter onto a model."""
    if way == "attach":
        attach(model, {"a": folder}, layers=layers)
    else:
        attach(model, {}, layers=layers).load("a", folder)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["attach", "load"])
def test_no_option_of_the_command_line_is_recommended(tmp_path, case, way):
    change, layers = CASES[case]
    folder, model = spoilt(tmp_path / "a", change), tiny_model("llama").eval()
    with pytest.raises(AdaptrixError) as raised:
        brought(model, folder, way, layers)
    assert not re.search(r"--[a-z]", str(raised.value)), str(raised.value)


def test_another_family_is_attached_to_its_own(tmp_path):
    saved(tiny_model("gpt2"), tmp_path / "a", target_modules=["c_attn"])
    for way in ("attach", "load"):
        with pytest.raises(AdaptrixError, match="model of its own family"):
            brought(tiny_model("llama"), tmp_path / "a", way)
