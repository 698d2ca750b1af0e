"""Adapters made, saved and loaded by peft itself, on the tiny models of :mod:`tests.helpers.families`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils import get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

import adaptrix
from adaptrix.binding.bind import BoundAdapter, expected_shape
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor
from tests.helpers.families import tiny_model

TEXT = torch.tensor([[3, 5, 7, 9, 11]])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: what a family needs besides its linear layers: fused experts are parameters, no modules
PARAMETERS = {
    "mixtral": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "qwen3_moe": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
Build = Callable[[], Any]


@dataclass(frozen=True)
class Saved:
    """An adapter that peft saved, the base's config beside it, and what the adapted model answers."""

    folder: Path
    base: Path
    build: Build
    logits: torch.Tensor
    deltas: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / CONFIG).read_text())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return weights(self.folder)


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a saved adapter, in memory: tests change the file."""
    return {n: Tensor(t.dtype, t.shape, t.tobytes()) for n, t in safetensors_file.read(folder / WEIGHTS)[0].items()}


def logits(model: Any) -> torch.Tensor:
    """What a model answers to a few tokens."""
    extra = {"decoder_input_ids": TEXT} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        answer = model.eval()(input_ids=TEXT, **extra)
    return answer.logits if "logits" in answer else answer.start_logits


def linear_names(model: Any) -> list[str]:
    """The last parts of the paths of all linear layers but the output."""
    found = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings()
    }
    return sorted(found)


def trained(model: Any, seed: int = 1) -> Any:
    """The model with random numbers in whatever an adapter would have trained, no B left at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if tensor.requires_grad or ".lora_" in name:
            spread = 0.1 * torch.randn(tensor.shape, generator=generator)
            with torch.no_grad():
                tensor.copy_(tensor.abs() + spread.abs() if "magnitude" in name else tensor + spread)
    return model


def deltas(model: Any, adapter: str = "default") -> dict[str, np.ndarray]:
    """ΔW ``[out, in]`` (or ``[experts, out, in]``) by path, as peft itself computes it."""
    found = {}
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer) and adapter in module.r:
            delta = module.get_delta_weight(adapter).detach().double().numpy()
            base = module.get_base_layer()
            turned = isinstance(base, (Conv1D, torch.nn.Embedding))
            name = path.replace(".base_layer", "")
            if isinstance(module, ParamWrapper) and module.parameter_name != "weight":
                name += f".{module.parameter_name}"
            found[name] = delta.T if turned else delta
    return found


def save(
    folder: Path, family: str = "llama", config: peft.LoraConfig | None = None, build: Build | None = None, **keys: Any
) -> Saved:
    """An adapter of ``LoraConfig(**keys)`` on a tiny model, trained at random, saved by peft."""
    make = build or (lambda: tiny_model(family))
    base = make()
    base.config.save_pretrained(folder / "base")
    config = config or peft.LoraConfig(**({"r": 3, "lora_alpha": 7} | keys))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trained(peft.get_peft_model(base, config)).eval()
        model.save_pretrained(folder / "adapter")
    return Saved(folder / "adapter", folder / "base", make, logits(model), deltas(model))


def everything(family: str, model: Any) -> dict[str, Any]:
    """Keys of a config that adapts all linear layers of a model, and its experts, with mixed ranks and alphas."""
    names = linear_names(model)
    first, second = names[0], names[-1]
    keys = {
        "target_modules": names,
        "rank_pattern": {first: 5, rf"layers?\.1\..*{second}": 2},
        "alpha_pattern": {second: 11},
    }
    return keys | ({"target_parameters": PARAMETERS[family]} if family in PARAMETERS else {})


def load(folder: Path, build: Build) -> Any:
    """The model with the adapter; fails where peft missed a tensor of the file or did not know one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(build(), folder)
    said = [str(w.message) for w in caught]
    assert not [text for text in said if "missing adapter" in text], said
    assert_loaded(model, folder)
    return model.eval()


def assert_loaded(model: Any, folder: Path) -> None:
    """Every tensor of the file is in the model, and the model has none that is not in the file."""
    file = weights(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = get_peft_model_state_dict(model, save_embedding_layers=False)
    full = model.state_dict()
    assert {n for n in held if ".lora_" in n} == {n for n in file if ".lora_" in n}
    for name, tensor in file.items():
        value = held.get(name, full.get(name))
        assert value is not None, f"peft did not load {name}"
        assert np.array_equal(value.detach().double().numpy(), tensor.float64()), name


def same_config(one: Path, other: Path) -> None:
    """Both folders hold one config to peft."""
    first, second = (peft.PeftConfig.from_pretrained(path).to_dict() for path in (one, other))
    assert first == second


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Both hold the same names, dtypes, shapes and bytes."""
    assert {n: (t.dtype, t.shape) for n, t in one.items()} == {n: (t.dtype, t.shape) for n, t in other.items()}
    for name, tensor in one.items():
        assert tensor.tobytes() == other[name].tobytes(), name


def unverified(bound: BoundAdapter) -> Iterator[str]:
    """The sites in layers whose shape no config vouches for."""
    assert set(bound.dims.origins.values()) <= {"config"}
    for site in bound.deltas:
        shape = expected_shape(site, bound.architecture.roles[site.role], bound.dims)
        if site.layer is not None and None in shape:
            yield str(site)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] | None = None, **config: Any) -> Path:
    """Changes a saved adapter in place: its tensors by a function, its config by keys (None removes one)."""
    if change is not None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        tensors = change(tensors) or tensors
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    if config:
        raw = json.loads((folder / CONFIG).read_text())
        raw = {key: value for key, value in (raw | config).items() if value is not REMOVED}
        (folder / CONFIG).write_text(json.dumps(raw))
    return folder


def round_trip(saved: Saved, folder: Path, **options: Any) -> Path:
    """peft → injection file → peft: the second folder."""
    file = adaptrix.convert(saved.folder, folder / "one.adaptrix.safetensors", base=saved.base, **options)
    return adaptrix.convert(file, folder / "back", to="peft")


def assert_lossless(saved: Saved, folder: Path) -> BoundAdapter:
    """The law of the whole road: nothing is refused, and what comes back is what went in, to the byte and to peft."""
    report = adaptrix.check(saved.folder, saved.base)
    assert not [str(p) for p in report.problems if p.severity != "note"]
    assert list(unverified(report.bound)) == []
    assert adaptrix.check(saved.folder).ok  # without a base as well
    back = round_trip(saved, folder)
    same_tensors(saved.tensors, weights(back))
    same_config(saved.folder, back)
    assert torch.equal(logits(load(back, saved.build)), saved.logits)
    assert not torch.equal(saved.logits, logits(saved.build()))
    assert_deltas(report.bound, saved.deltas)
    return report.bound


def assert_same_deltas(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Both say the same of the same modules."""
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        np.testing.assert_allclose(found[path], delta, rtol=1e-4, atol=1e-5, err_msg=path)


def assert_deltas(bound: BoundAdapter, wanted: Mapping[str, np.ndarray]) -> None:
    """Every delta is the matrix that peft computes, and ``energy`` its square norm."""
    ours: dict[str, Any] = {}
    for site, delta in bound.deltas.items():
        ours[bound.targets[site].path] = delta
    assert ours.keys() == wanted.keys()
    for path, delta in ours.items():
        np.testing.assert_allclose(delta.dense(), wanted[path], rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.isclose(delta.energy(), np.linalg.norm(delta.dense()) ** 2, rtol=1e-9), path


REMOVED = object()
