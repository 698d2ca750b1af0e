"""Spectral adapters merged into their base, held to the same adapter attached and to the exact LoRA."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import adaptrix
from adaptrix.adapter import Extra
from adaptrix.attaching import attach
from adaptrix.base.checkpoint import open_base
from adaptrix.base.svd import SvdCache
from adaptrix.errors import RefusedError
from adaptrix.merging.draft import draft, settle
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import make_plan
from adaptrix.results import CheckReport
from adaptrix.torch_tensor import as_stored
from tests.helpers.attached import logits
from tests.helpers.families import tiny_model
from tests.helpers.merge_models import as_torch, loaded, merge, tensors
from tests.helpers.spectral_experts import MODULES, as_lora, expert, multiplied_out

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))
    return SvdCache()


def made(folder, family, cache, *, dtype=torch.float32, vectors=False, seed=0):
    """A base on the disk, the model, and an expert of it, in memory and on the disk."""
    model = tiny_model(family, seed=seed).to(dtype)
    model.save_pretrained(folder / "base")
    adapter = expert(model, MODULES[family], cache, vectors=vectors)
    adaptrix.convert(adapter, folder / "x.safetensors", layers="all")
    return model, adapter


def in_torch(folder):
    return {name: as_torch(tensor) for name, tensor in tensors(folder).items()}


def apart(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_merged_is_native_and_the_exact_lora(family, vectors, tmp_path, cache):
    model, adapter = made(tmp_path, family, cache, vectors=vectors)
    done = merge(tmp_path / "x.safetensors", tmp_path / "base", tmp_path / "out", verify=True)
    assert done.changed == len(adapter.deltas)
    base, merged = logits(model), logits(loaded(tmp_path / "out", model))
    with attach(model, {"x": tmp_path / "x.safetensors", "lora": as_lora(adapter, model, cache)}) as session:
        with session.use("x"):
            native = logits(model)
        with session.use("lora"):
            exact = logits(model)
    assert apart(native, base) > 1e-3
    assert apart(merged, native) < TOLERANCE
    assert apart(merged, exact) < TOLERANCE


@pytest.mark.parametrize("family", MODULES)
def test_a_base_in_bf16_is_rounded_once(family, tmp_path, cache):
    """Of numbers that lie half-way between two of bf16 either may be taken: ΔW is added in fp32 here."""
    model, adapter = made(tmp_path, family, cache, dtype=torch.bfloat16)
    merge(tmp_path / "x.safetensors", tmp_path / "base", tmp_path / "out")
    found, own = in_torch(tmp_path / "out"), in_torch(tmp_path / "base")
    wanted = multiplied_out(model, [(1.0, adapter)], cache).state_dict()
    touched = {f"{target}.weight" for target in adapter.deltas}
    assert len(touched) >= 9
    for name, tensor in found.items():
        if name in touched:
            assert not torch.equal(tensor, own[name])
            assert (tensor == wanted[name]).float().mean() > 0.998, name
            assert torch.allclose(tensor.float(), wanted[name].float(), rtol=2**-7, atol=1e-6), name
        else:
            assert torch.equal(tensor, own[name]), name


def test_a_plan_merges_its_layers_alone(tmp_path, cache):
    made(tmp_path, "llama", cache)
    done = merge(tmp_path / "x.safetensors", tmp_path / "base", tmp_path / "out", layers="1")
    assert done.changed == 3
    found, own = in_torch(tmp_path / "out"), in_torch(tmp_path / "base")
    changed = [name for name in own if not torch.equal(own[name], found[name])]
    assert len(changed) == 3
    assert all(".1." in name for name in changed)


def test_gains_multiply_what_is_added(tmp_path, cache):
    model, adapter = made(tmp_path, "gpt2", cache)
    bound = Pipeline().bind(adaptrix.load(tmp_path / "x.safetensors"), str(tmp_path / "base"))
    plan = replace(make_plan(bound, "0-1"), gains={0: 0.5, 1: -2.0})
    base = open_base(tmp_path / "base", "base", model.config.to_dict())
    write(settle(plan, base, CheckReport("gains", ())), str(tmp_path / "out"), MergeOptions())
    by_layer = [
        (gain, replace(adapter, deltas={t: d for t, d in adapter.deltas.items() if f".{layer}." in t.path}))
        for layer, gain in plan.gains.items()
    ]
    wanted = multiplied_out(model, by_layer[:1], cache)
    wanted = multiplied_out(wanted, by_layer[1:], cache).state_dict()
    for name, tensor in in_torch(tmp_path / "out").items():
        assert apart(tensor, wanted[name]) < TOLERANCE, name


def refused(folder, out, **options):
    with pytest.raises(RefusedError) as caught:
        merge(folder / "x.safetensors", folder / "base", out, **options)
    assert not out.exists()
    return caught.value.problems


def test_another_base_is_refused_at_every_weight(tmp_path, cache):
    made(tmp_path, "llama", cache)
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "base")
    problems = refused(tmp_path, tmp_path / "out")
    assert [problem.code for problem in problems] == ["base-mismatch"] * 9


def test_a_weight_that_is_replaced_as_well_is_refused(tmp_path, cache):
    model, adapter = made(tmp_path, "llama", cache)
    name = "model.layers.0.mlp.down_proj.weight"
    extra = Extra("module", as_stored(model.state_dict()[name] + 1))
    adaptrix.convert(replace(adapter, extras={name: extra}), tmp_path / "x.safetensors", layers="all", force=True)
    (problem,) = refused(tmp_path, tmp_path / "out")
    assert (problem.code, problem.where) == ("part", name)


def test_a_base_whose_files_keep_a_fused_weight_in_parts_is_refused(tmp_path, cache):
    made(tmp_path, "phi3", cache)
    file = tmp_path / "base" / "model.safetensors"
    whole = {name: as_torch(tensor).clone() for name, tensor in tensors(tmp_path / "base").items()}
    for name in [name for name in whole if "qkv_proj" in name]:
        parts = dict(zip("qkv", whole.pop(name).split([40, 20, 20]), strict=True))
        whole |= {name.replace("qkv_proj", f"{part}_proj"): tensor.clone() for part, tensor in parts.items()}
    save_file(whole, file, {"format": "pt"})
    problems = refused(tmp_path, tmp_path / "out")
    assert [problem.code for problem in problems] == ["module-missing"] * 3


def test_what_nf4_leaves_of_a_base_has_other_singular_vectors(tmp_path, cache):
    made(tmp_path, "llama", cache)
    wanted = MergeOptions(qlora_base="bf16")
    with pytest.raises(RefusedError, match="stored") as caught:
        draft(Pipeline(), str(tmp_path / "x.safetensors"), str(tmp_path / "base"), wanted)
    assert len(caught.value.problems) == 9


def test_a_base_in_double_precision_is_merged_in_it(tmp_path, cache):
    model, adapter = made(tmp_path, "llama", cache, dtype=torch.float64)
    merge(tmp_path / "x.safetensors", tmp_path / "base", tmp_path / "out")
    wanted = multiplied_out(model, [(1.0, adapter)], cache).state_dict()
    for name, tensor in tensors(tmp_path / "out").items():
        assert np.abs(tensor.numpy() - wanted[name].numpy()).max() < 1e-12, name
