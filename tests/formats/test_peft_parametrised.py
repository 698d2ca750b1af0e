"""PEFT types that are a LoRA in another parametrisation go every road that a LoRA goes; peft is the judge."""

from __future__ import annotations

import json
import warnings

import numpy as np
import peft
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import adaptrix
from adaptrix.delta import LowRank, vera
from adaptrix.errors import RefusedError
from adaptrix.planning import lowering
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import (
    CONFIG,
    TEXT,
    Saved,
    logits,
    rewrite,
    same_config,
    same_tensors,
    save,
    trained,
    weights,
)
from tests.helpers.peft_parametrised import CASES, QVD, case, load, peft_deltas
from tests.helpers.peft_types import config_of, save_of


@pytest.fixture(params=CASES)
def saved(request, tmp_path):
    return case(request.param, tmp_path)


def test_every_delta_is_the_matrix_that_peft_computes(saved):
    report = adaptrix.check(saved.folder, saved.base)
    assert [p for p in report.problems if p.severity != "note"] == []
    found = {report.bound.targets[site].path: delta for site, delta in report.bound.deltas.items()}
    wanted = peft_deltas(saved)
    assert found.keys() == wanted.keys()
    for path, delta in found.items():
        np.testing.assert_allclose(delta.dense(), wanted[path], rtol=1e-5, atol=1e-6, err_msg=path)
        made, loss = delta.low_rank()
        assert isinstance(made, LowRank)
        assert loss.relative == 0
        np.testing.assert_allclose(made.dense(), wanted[path], rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.linalg.matrix_rank(wanted[path], tol=1e-5) <= delta.rank == made.rank
        assert np.isclose(delta.energy(), (delta.dense() ** 2).sum(), rtol=1e-9)


def test_it_acts_and_is_merged_as_by_peft(saved, tmp_path):
    model = saved.build().eval()
    with adaptrix.attach(model, {"one": saved.folder}) as session, session.use("one"):
        assert torch.allclose(logits(model), saved.logits, atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    merged = adaptrix.merge(saved.folder, tmp_path / "model", tmp_path / "merged")
    assert torch.allclose(logits(type(model).from_pretrained(merged)), saved.logits, atol=1e-5)
    assert not torch.allclose(logits(saved.build()), saved.logits, atol=1e-3)


def test_it_goes_into_an_injection_file_and_comes_back_as_it_was(saved, tmp_path):
    file = adaptrix.convert(saved.folder, tmp_path / "one.adaptrix.safetensors", base=saved.base)
    model = saved.build().eval()
    with adaptrix.attach(model, {"one": file}) as session, session.use("one"):
        assert torch.allclose(logits(model), saved.logits, atol=1e-5)
    for source, name in ((file, "from the file"), (saved.folder, "at once")):
        back = adaptrix.convert(source, tmp_path / name, to="peft", base=saved.base)
        same_tensors(saved.tensors, weights(back))
        same_config(saved.folder, back)
        assert json.loads((back / CONFIG).read_text()) == saved.config


def test_a_rank_makes_a_lora_of_it_that_peft_loads(saved, tmp_path):
    made = adaptrix.convert(saved.folder, tmp_path / "lora", to="peft", rank=64, base=saved.base)
    assert json.loads((made / CONFIG).read_text())["peft_type"] == "LORA"
    model = load(saved, made)
    assert torch.allclose(logits(model), saved.logits, atol=1e-5)


SMALL = ["AdaLoRA pruned", "LoHa", "LoKr of two factors", "VeRA", "VB-LoRA"]


@pytest.fixture(params=SMALL)
def beside(request, tmp_path):
    one = case(request.param, tmp_path / "one")
    return one, save(tmp_path / "other", target_modules=["q_proj", "k_proj"])


def test_sums_and_routes_with_a_lora(beside):
    one, other = beside
    model = one.build().eval()
    with adaptrix.attach(model, {"one": one.folder, "other": other.folder}) as session:
        rows = torch.tensor([[3, 5, 7], [3, 5, 7]])
        with session.route(["one", "other"]), torch.no_grad():
            routed = model(rows).logits
        apart = []
        for name in ("one", "other"):
            with session.use(name), torch.no_grad():
                apart.append(model(rows[:1]).logits[0])
        with session.use({"one": 0.5, "other": -2.0}):
            mixed = logits(model)
    assert torch.allclose(routed, torch.stack(apart), atol=1e-5)
    with torch.no_grad():
        for weight, deltas in ((0.5, peft_deltas(one)), (-2.0, other.deltas)):
            for path, delta in deltas.items():
                model.get_submodule(path).weight += weight * torch.from_numpy(delta).float()
    assert torch.allclose(mixed, logits(model), atol=1e-5)


def test_combining_and_resizing_make_loras(beside, tmp_path):
    one, other = beside
    file = adaptrix.combine(
        [one.folder, other.folder], weights=[0.5, -2.0], out=tmp_path / "sum", to="peft", base=one.base
    ).path
    model = load(one, file)
    wanted = one.build().eval()
    with torch.no_grad():
        for weight, deltas in ((0.5, peft_deltas(one)), (-2.0, other.deltas)):
            for path, delta in deltas.items():
                wanted.get_submodule(path).weight += weight * torch.from_numpy(delta).float()
    assert torch.allclose(logits(model), logits(wanted), atol=1e-5)


def test_a_resized_one_is_a_lora(beside, tmp_path):
    one, _ = beside
    wanted = peft_deltas(one)
    made = adaptrix.resize(one.folder, rank=64, out=tmp_path / "small", to="peft", base=one.base).path
    assert json.loads((made / CONFIG).read_text())["peft_type"] == "LORA"
    assert logits(load(one, made)).shape == one.logits.shape
    for target, delta in adaptrix.load(made).deltas.items():
        np.testing.assert_allclose(delta.dense(), wanted[target.path], atol=1e-5)


def test_a_pruned_plan_of_it_is_a_lora_to_peft(beside, tmp_path):
    one, _ = beside
    file = adaptrix.convert(one.folder, tmp_path / "a.adaptrix.safetensors", base=one.base, layers="1", prune=True)
    kept = adaptrix.load(file)
    assert {delta.kind for delta in kept.deltas.values()} == {one.config["peft_type"].lower()}
    back = adaptrix.convert(file, tmp_path / "back", to="peft")
    raw = json.loads((back / CONFIG).read_text())
    assert raw["peft_type"] == "LORA"
    model = load(one, back)
    plain = one.build().eval()
    with adaptrix.attach(plain, {"one": file}) as session, session.use("one"):
        assert torch.allclose(logits(model), logits(plain), atol=1e-5)


@pytest.mark.parametrize("name", ["VeRA", "MiSS", "MiSS mini", "FourierFT", "SHiRA"])
def test_sizes_that_the_tensors_do_not_say_are_asked_of_the_base(name, tmp_path):
    saved = case(name, tmp_path, target_modules=["down_proj"])
    problems = [p for p in adaptrix.check(saved.folder).problems if p.severity == "error"]
    assert {p.code for p in problems} == {"base-needed"}
    assert all("--base" in p.remedy for p in problems)
    adaptrix.inspect(saved.folder)  # what there is can be looked at
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base)
    assert adaptrix.check(file).ok  # the file says them


def test_projections_are_those_that_peft_draws(tmp_path):
    keys = {"r": 5, "target_modules": QVD, "projection_prng_key": 12345678901}
    saved = save_of("VERA", tmp_path, **keys)
    shared = {
        name.rpartition(".")[2]: tensor for name, tensor in saved.tensors.items() if name.endswith(("vera_A", "vera_B"))
    }
    (rank, widest), (tallest, _) = shared["vera_A"].shape, shared["vera_B"].shape
    for name, drawn in zip(shared, vera._drawn(12345678901, rank, widest, tallest), strict=True):
        np.testing.assert_allclose(drawn, shared[name].numpy(), rtol=0, atol=1e-7)


def test_a_rank_that_loses_too_much_is_refused_and_one_that_is_allowed_is_measured(tmp_path):
    saved = save_of("LOHA", tmp_path, r=3, alpha=7, target_modules=QVD)
    with pytest.raises(RefusedError) as error:
        adaptrix.convert(saved.folder, tmp_path / "a", to="peft", rank=2)
    assert {p.code for p in error.value.problems} == {"rank-error"}
    made = adaptrix.convert(saved.folder, tmp_path / "b", to="peft", rank=2, max_error=0.99)
    wanted = peft_deltas(saved)
    for target, delta in adaptrix.load(made).deltas.items():
        values = np.linalg.svd(wanted[target.path], compute_uv=False)
        gap = np.linalg.norm(delta.dense() - wanted[target.path])
        assert gap == pytest.approx(np.sqrt((values[2:] ** 2).sum()), rel=1e-4)


def test_a_lora_of_a_large_rank_is_made_only_where_it_is_asked_for(tmp_path, monkeypatch):
    saved = save_of("LOHA", tmp_path, r=3, alpha=7, target_modules=QVD)
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base, layers="1", prune=True)
    monkeypatch.setattr(lowering, "MOST", 4)
    with pytest.raises(RefusedError) as error:
        adaptrix.convert(file, tmp_path / "b", to="peft")
    (problem,) = error.value.problems
    assert problem.code == "rank-error"
    assert "rank 9" in problem.found
    assert {
        d.rank for d in adaptrix.load(adaptrix.convert(file, tmp_path / "b", to="peft", rank=9)).deltas.values()
    } == {9}


def test_training_is_refused_with_what_can_be_trained(tmp_path):
    saved = save_of("LOKR", tmp_path, r=2, alpha=7)
    with adaptrix.attach(saved.build(), {"one": saved.folder}) as session, pytest.raises(RefusedError) as error:
        session.named_parameters("one")
    assert {p.code for p in error.value.problems} == {"kind-unsupported"}
    assert "--rank" in error.value.problems[0].remedy


def test_the_keys_of_the_configs_are_those_of_peft(saved):
    assert [p for p in adaptrix.check(saved.folder).problems if p.code == "config-unknown"] == []


def test_bf16_is_kept(tmp_path):
    saved = save_of("LOHA", tmp_path, r=3, alpha=7)
    rewrite(saved.folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base)
    same_tensors(weights(saved.folder), weights(adaptrix.convert(file, tmp_path / "back", to="peft")))
    half = tiny_model("llama").bfloat16()
    with adaptrix.attach(half, {"one": file}) as session, session.use("one"):
        assert torch.allclose(logits(half).float(), saved.logits, atol=0.1)


def test_an_adalora_that_was_trained_and_pruned(tmp_path):
    """peft's own allocator takes ranks away while it is trained."""
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=1, total_step=6, lora_alpha=7, target_modules=QVD, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    optimiser = torch.optim.SGD([t for t in model.parameters() if t.requires_grad], lr=0.5)
    for step in range(1, 7):
        model(input_ids=TEXT, labels=TEXT).loss.backward()
        optimiser.step()
        model.base_model.update_and_allocate(step)
        optimiser.zero_grad()
    model.save_pretrained(tmp_path / "adapter")
    tiny_model("llama").config.save_pretrained(tmp_path / "base")
    saved = Saved(tmp_path / "adapter", tmp_path / "base", lambda: tiny_model("llama"), logits(model))
    assert len({delta.rank for delta in adaptrix.load(saved.folder).deltas.values()}) > 1  # some were taken away
    plain = saved.build().eval()
    with adaptrix.attach(plain, {"one": saved.folder}) as session, session.use("one"):
        assert torch.allclose(logits(plain), logits(load(saved)), atol=1e-5)
    back = adaptrix.convert(saved.folder, tmp_path / "back", to="peft", base=saved.base)
    same_tensors(saved.tensors, weights(back))


KERNELS = {
    "LOHA": {"r": 2, "alpha": 4},
    "LOKR": {"r": 2, "alpha": 4, "decompose_both": True},
    "ADALORA": {"init_r": 3, "lora_alpha": 4},
}


def vision():
    """A model whose patches go through a convolution of 4 × 4."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=2, num_labels=3)).eval()


@pytest.mark.parametrize("kind", KERNELS)
def test_flattened_kernels_are_merged_and_refused_where_they_would_have_to_act(kind, tmp_path):
    keys = {"target_modules": ["projection", "q_proj"], "task_type": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(vision(), config_of(kind, **keys | KERNELS[kind]))
        trained(model).eval().save_pretrained(tmp_path / "adapter")
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    vision().save_pretrained(tmp_path / "base")
    merged = adaptrix.merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    with torch.no_grad():
        wanted, plain = model(image).logits, vision()(image).logits
        assert torch.allclose(ViTForImageClassification.from_pretrained(merged)(image).logits, wanted, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    with pytest.raises(RefusedError, match="Conv2d"):
        adaptrix.attach(vision(), {"one": tmp_path / "adapter"})
