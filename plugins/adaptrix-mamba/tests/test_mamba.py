"""The Mamba families against the models of transformers, and an adapter's way there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import adaptrix_mamba
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import adaptrix
from adaptrix.extend import read_architecture
from adaptrix.testing import ArchitectureLaws, PluginLaws

FOLDER = Path(adaptrix_mamba.__file__).parent

# Sizes that all differ, so that nothing can be swapped unseen.
MAMBA = {"hidden_size": 20, "state_size": 7, "time_step_rank": 3, "vocab_size": 71, "num_hidden_layers": 4}
MAMBA2 = {"hidden_size": 24, "num_heads": 6, "head_dim": 8, "n_groups": 3, "state_size": 5, "vocab_size": 71,
          "num_hidden_layers": 4, "chunk_size": 4}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"mamba": MAMBA, "falcon_mamba": MAMBA, "mamba2": MAMBA2}


class TestMamba(ArchitectureLaws):
    architecture = FOLDER / "mamba.toml"
    configs = ({"model_type": "mamba", **MAMBA}, {"model_type": "falcon_mamba", **MAMBA, "hidden_size": 18})
    unchecked_parts = ("in_proj", "x_proj")  # checked below


class TestMamba2(ArchitectureLaws):
    architecture = FOLDER / "mamba2.toml"
    configs = ({"model_type": "mamba2", **MAMBA2},)
    unchecked_parts = ("in_proj",)  # checked below


class TestPlugin(PluginLaws):
    distribution = "adaptrix-mamba"
    contributes: ClassVar = {"architectures": ["mamba", "mamba2"]}


def _model(model_type: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **more})
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


SIZES = {
    "mamba": {"in_proj": {"x": 40, "gate": 40}, "x_proj": {"dt": 3, "b": 7, "c": 7}},
    "mamba2": {"in_proj": {"gate": 48, "x": 48, "b": 15, "c": 15, "dt": 6}},
}
# What becomes of the recurrent state h = exp(dt A) h + dt B x and of the mixer's output (C h + D x) * silu(gate)
# where the rows of a part are set to zero.
EFFECTS = {
    "x": ("zero", "zero"),
    "gate": ("same", "zero"),
    "b": ("zero", "other"),
    "c": ("same", "other"),
    "dt": ("other", "other"),
}


@pytest.mark.parametrize(("family", "role"), [("mamba", "in_proj"), ("mamba", "x_proj"), ("mamba2", "in_proj")])
def test_parts_are_what_they_are_called(family: str, role: str) -> None:
    model = _model(family, use_conv_bias=False)  # or a zero would not stay one
    weight = getattr(model.backbone.layers[0].mixer, role).weight
    before, kept, start = _state_and_output(model), weight.clone(), 0
    for part in read_architecture(FOLDER / f"{family}.toml").roles[role].parts:
        stop = start + SIZES[family][role][part]
        weight[start:stop] = 0
        after = _state_and_output(model)
        assert tuple(map(_effect, before, after)) == EFFECTS[part], part
        weight.copy_(kept)
        start = stop
    assert start == len(weight)


def _state_and_output(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrent state and the output of the first layer's mixer."""
    outputs: list[torch.Tensor] = []
    handle = model.backbone.layers[0].mixer.register_forward_hook(lambda _, __, output: outputs.append(output))
    cache = model(torch.arange(5)[None], use_cache=True).cache_params
    handle.remove()
    return cache.get_recurrent_state(0, state_idx=0).clone(), outputs[0]


def _effect(before: torch.Tensor, after: torch.Tensor) -> str:
    if not after.any():
        return "zero"
    return "same" if torch.equal(before, after) else "other"


TARGETS: dict[str, dict[str, Any]] = {
    "mamba": {"target_modules": ["in_proj", "x_proj", "dt_proj", "embeddings"]},
    "falcon_mamba": {"target_parameters": ["mixer.A_log"]},
    "mamba2": {"target_modules": ["in_proj", "embeddings"], "layers_to_transform": [1, 2]},
}


def _trained(model_type: str, folder: Path) -> torch.Tensor:
    """Saves a base and an adapter of it; returns the logits of both together."""
    _model(model_type).save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=3, **TARGETS[model_type])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(folder / "adapter")
    return _logits(adapted)


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model(torch.arange(9)[None], use_cache=False).logits


@pytest.mark.parametrize("model_type", TARGETS)
def test_an_adapter_survives_the_round_trip(model_type: str, tmp_path: Path) -> None:
    expected = _trained(model_type, tmp_path)
    report = adaptrix.check(tmp_path / "adapter")
    assert report.ok, report.problems
    assert report.bound is not None
    assert model_type in report.bound.architecture.model_types
    assert set(report.bound.dims.origins.values()) == {"config"}

    file = adaptrix.convert(tmp_path / "adapter", tmp_path / "file.adaptrix.safetensors", layers="all")
    back = adaptrix.convert(file, tmp_path / "back", to="peft")
    weights = "adapter_model.safetensors"
    assert (back / weights).read_bytes() == (tmp_path / "adapter" / weights).read_bytes()

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert not torch.allclose(_logits(base), expected), "the adapter does something"
    assert torch.equal(_logits(peft.PeftModel.from_pretrained(base, back).eval()), expected)


def test_a_config_from_before_transformers_filled_it_in_will_do(tmp_path: Path) -> None:
    _trained("mamba", tmp_path)
    file = tmp_path / "base" / "config.json"
    config = json.loads(file.read_text())
    del config["intermediate_size"]
    file.write_text(json.dumps({**config, "time_step_rank": "auto"}))
    report = adaptrix.check(tmp_path / "adapter")
    assert report.ok, report.problems
    assert report.bound is not None
    assert {"inner": 40, "dt_rank": 3}.items() <= report.bound.dims.values.items()
    assert report.bound.dims.origins["inner"] == "config"
    assert report.bound.dims.origins["dt_rank"] == "tensors", "20 / 16 does not come out even"


def test_an_adapter_of_another_size_is_refused(tmp_path: Path) -> None:
    _trained("mamba", tmp_path)
    _model("mamba", hidden_size=22).save_pretrained(tmp_path / "other")
    report = adaptrix.check(tmp_path / "adapter", tmp_path / "other")
    wrong = {problem.where.split()[0] for problem in report.problems if problem.code == "shape"}
    assert {"layers.0.in_proj", "layers.3.x_proj", "layers.2.dt_proj", "embed"} <= wrong
