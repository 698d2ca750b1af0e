"""Spectral adapters on a live model, held to the same change multiplied out into the weights."""

import copy
import gc
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

import adaptrix
from adaptrix.adapter import Extra
from adaptrix.attaching import attach
from adaptrix.base.svd import SvdCache
from adaptrix.errors import RefusedError
from adaptrix.runtime import decompositions
from adaptrix.runtime.spectral import SpectralKernel
from adaptrix.tensor import Tensor
from adaptrix.torch_tensor import as_stored
from tests.helpers.attached import hook_count, logits, saved
from tests.helpers.double import EXACT
from tests.helpers.families import tiny_model
from tests.helpers.spectral_experts import MODULES, as_lora, changed, expert, multiplied_out, with_vectors

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-5
LLAMA = MODULES["llama"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of decompositions of its own, which sessions find."""
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))
    return SvdCache()


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture
def pair(llama, cache):
    """Two experts; the second leaves out one kind of module."""
    return {"a": expert(llama, LLAMA, cache, seed=1), "b": expert(llama, LLAMA[1:], cache, seed=2)}


@pytest.fixture
def lora(llama, tmp_path):
    """A LoRA on one module that the experts change, and on one that they do not."""
    saved(llama, tmp_path / "lora", seed=3, target_modules=["q_proj", "down_proj"], use_dora=True)
    return tmp_path / "lora"


def apart(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_native_is_the_dense_change_and_the_exact_lora(family, vectors, cache):
    model = tiny_model(family)
    adapter = expert(model, MODULES[family], cache, vectors=vectors)
    base, before = logits(model), hook_count(model)
    wanted = logits(multiplied_out(model, [(1.0, adapter)], cache))
    assert apart(wanted, base) > 1e-3
    with attach(model, {"z": adapter, "lora": as_lora(adapter, model, cache)}) as session:
        assert torch.equal(logits(model), base)
        with session.use("z"):
            native = logits(model)
            assert set(session.report().injections.values()) == {1}
        with session.use("lora"):
            assert apart(logits(model), native) < TOLERANCE
        assert apart(native, wanted) < TOLERANCE
    assert torch.equal(logits(model), base)
    assert hook_count(model) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_expert_of_a_half_precision_base_acts_on_it_in_either_width(dtype, llama, cache):
    llama.to(dtype)
    adapter = expert(llama, LLAMA, cache, spread=3.0)
    wide = copy.deepcopy(llama).float()
    wanted, base = logits(multiplied_out(wide, [(1.0, adapter)], SvdCache())), logits(wide)
    with attach(wide, {"x": adapter}) as session, session.use("x"):
        exact = logits(wide)
    with attach(llama, {"x": adapter}) as session, session.use("x"):
        rounded = logits(llama)
    assert apart(exact, wanted) < TOLERANCE
    assert rounded.dtype is dtype
    assert apart(rounded.float(), wanted) < 0.1 * apart(wanted, base)
    with pytest.raises(RefusedError, match="SHA-256"):  # its own bits are lost
        attach(wide.to(torch.float16 if dtype is torch.bfloat16 else torch.bfloat16), {"x": adapter})


def test_weighted_sums_are_those_of_the_deltas(llama, pair, cache):
    mixtures = ({"a": 0.7, "b": 0.3}, {"a": -1.5}, {"a": 1.0, "b": -2.0})
    wanted = [
        logits(multiplied_out(llama, [(weight, pair[name]) for name, weight in weights.items()], cache))
        for weights in mixtures
    ]
    with attach(llama, pair) as session:
        for weights, one in zip(mixtures, wanted, strict=True):
            with session.use(weights):
                assert apart(logits(llama), one) < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_rows_of_spectral_and_low_rank_adapters_are_each_its_own(tokens, llama, pair, lora):
    names = ["a", None, "lora", "b", "a"]
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (5, tokens))
    with attach(llama, {**pair, "lora": lora}) as session:
        with session.route(names):
            mixed = logits(llama, input_ids=ids)
        for row, name in enumerate(names):
            with session.use(name):
                assert apart(mixed[row], logits(llama, input_ids=ids)[row]) < TOLERANCE, name


def test_a_sum_of_spectral_and_low_rank_adapters_adds_both(llama, pair, lora, cache):
    both = multiplied_out(llama, [(0.5, pair["a"])], cache)
    with attach(llama, {**pair, "lora": lora}) as session:
        with session.use({"a": 0.5, "lora": 2.0}):
            found = logits(llama)
        kernels = {name: next(one for one in session._adapters if one.name == name).kernels for name in ("a", "lora")}
        with torch.no_grad():  # ΔW of a DoRA, from what it adds to the answer of the module
            for site, kernel in kernels["lora"].items():
                module = llama.get_submodule(session._hooks.modules[site].name)
                x = torch.eye(module.weight.shape[1])
                target = both.get_submodule(session._hooks.modules[site].name)
                target.weight += 2.0 * kernel.delta(x, x @ module.weight.T).T
    assert apart(found, logits(both)) < TOLERANCE


def test_rows_of_the_base_are_the_base_to_the_bit_even_where_they_overflow(llama, pair):
    with attach(llama, pair) as session, session.route(["a", None]):
        kernel = next(iter(session._hooks.current.kernels.values()))
        x = torch.full((2, 1, kernel.axes.V.shape[0]), 3e38)
        y = torch.zeros(2, 1, kernel.axes.Ut.shape[1])
        assert not torch.isfinite(x[1] @ kernel.axes.V).all()
        assert torch.equal(kernel.add(x.clone(), y.clone())[1], y[1])
        assert torch.equal(kernel.delta(x, y)[1], y[1])


def test_generation_with_beams_under_a_route_is_that_of_each_alone(llama, pair):
    ids = torch.randint(3, 40, (2, 5))
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(llama, pair) as session:
        with session.route(["a", "b"]):
            mixed = llama.generate(ids, **options)
        for row, name in enumerate(("a", "b")):
            with session.use(name):
                assert torch.equal(mixed[row], llama.generate(ids, **options)[row])


def test_experts_of_one_weight_share_its_axes_and_leave_none_behind(llama, pair, cache):
    both = {**pair, "own": expert(llama, LLAMA, cache, seed=3, vectors=True)}
    with attach(llama, both) as session:
        session.load("later", expert(llama, LLAMA, cache, seed=4))
        by_site = {}
        for loaded in session._adapters:
            for site, kernel in loaded.kernels.items():
                by_site.setdefault(site, set()).add(kernel.axes)
        assert [len(shared) for shared in by_site.values()] == [1] * 9
        pool = session._build._decompositions._axes
        del by_site, loaded, kernel
        for name in both:
            session.unload(name)
        gc.collect()
        assert pool
        session.unload("later")
        gc.collect()
        assert not pool


def test_a_file_acts_by_its_plan_and_its_gains(llama, pair, tmp_path):
    adaptrix.convert(pair["a"], tmp_path / "x.safetensors", layers="1-2")
    read = adaptrix.load(tmp_path / "x.safetensors")
    half = replace(read, recorded=replace(read.recorded, gains={1: 0.5, 2: 0.5}))
    upper = replace(pair["a"], deltas={t: d for t, d in pair["a"].deltas.items() if ".0." not in t.path})
    with attach(llama, {"half": half, "file": tmp_path / "x.safetensors", "upper": upper}) as session:
        for one, other in (("half", {"upper": 0.5}), ("file", "upper")):
            with session.use(one):
                found = logits(llama)
            with session.use(other):
                assert apart(logits(llama), found) < TOLERANCE
        with session.use("half"):
            found = logits(llama)
        session.parameters("half")
        with session.use("half"):
            assert apart(logits(llama), found) < TOLERANCE


def test_swap_and_shared_prefill_go_on_as_if_read_anew(llama, pair):
    ids = torch.randint(3, 40, (2, 9))
    with attach(llama, pair, layers="2") as session, torch.no_grad():
        cache = session.new_cache()
        with session.use("a"):
            llama(input_ids=ids, past_key_values=cache)
        done = session.swap("b", cache)
        assert (done.kept, done.recomputed) == (2, 1)
        wanted = llama(input_ids=torch.cat([ids, ids[:, :1]], 1)).logits[:, -1]
        assert apart(llama(input_ids=ids[:, :1], past_key_values=cache).logits[:, -1], wanted) < TOLERANCE
        for name, prefill in zip(("a", None), session.prefill_shared({"input_ids": ids}, ["a", None]), strict=True):
            with session.use(name):
                assert apart(prefill.logits, llama(input_ids=ids).logits[:, -1]) < TOLERANCE


def test_max_drift_bounds_what_it_adds(llama, pair):
    with attach(llama, pair, max_drift=1e-3) as session, session.use("a"):
        logits(llama)
        assert session.report().tokens_clamped > 0


# --- gradients


def gradients(model, adapter, cache):
    """d loss / d z by site name, with autograd through U·diag(s⊙z)·Vᵀ."""
    leaves, weights = {}, {}
    for target, delta in adapter.deltas.items():
        own = model.get_submodule(target.path)
        found = with_vectors(delta, own, cache)
        U, Vt = (torch.from_numpy(t.copy()).double() for t in found.vectors())
        z = torch.from_numpy(delta.z.float64()).requires_grad_()
        dense = (U * (torch.from_numpy(delta.S.float64()) * (z - 1))) @ Vt
        turned = type(own).__name__ == "Conv1D"
        leaves[target], weights[f"{target.path}.weight"] = z, own.weight.detach() + (dense.T if turned else dense)
    ids = torch.randint(0, 40, (3, 6), generator=torch.Generator().manual_seed(7))
    functional_call(model, weights, kwargs={"input_ids": ids, "labels": ids}).loss.backward()
    model.zero_grad()
    return ids, {target: z.grad for target, z in leaves.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_z_is_a_leaf_with_the_gradient_of_the_dense_formula(family, checkpointing, cache, in_double):
    model = tiny_model(family).double()
    adapter = expert(model, MODULES[family], cache)
    ids, wanted = gradients(model, adapter, cache)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with attach(model, {"x": adapter}) as session:
        leaves = session.named_parameters("x")
        assert [id(leaf) for leaf in leaves.values()] == [id(leaf) for leaf in session.parameters("x")]
        assert leaves.keys() == {f"{target}.spectral_z" for target in adapter.deltas}
        with session.use("x"):
            model(input_ids=ids, labels=ids).loss.backward()
        for target, gradient in wanted.items():
            assert gradient.abs().max() > 0
            assert apart(leaves[f"{target}.spectral_z"].grad, gradient) < EXACT * gradient.abs().max(), target
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trained_expert_is_given_back_and_acts_as_it_did(llama, pair, cache):
    ids = torch.randint(0, 40, (3, 6))
    with attach(llama, pair) as session:
        leaves = session.parameters("a")
        with session.use({"a": 1.0, "b": 0.5}):  # the other one stays as it is
            optimiser = torch.optim.SGD(leaves, lr=10.0)
            losses = []
            for _ in range(3):
                optimiser.zero_grad()
                loss = llama(input_ids=ids, labels=ids).loss
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        assert losses[2] < losses[0]
        with session.use("a"):
            trained = logits(llama)
        with session.route(["a", "b", None]):
            by_row = logits(llama)
        now = session.adapter("a")
        session.load("again", now)
        with session.use("again"):
            assert apart(logits(llama), trained) < TOLERANCE
        assert apart(by_row[0], trained[0]) < TOLERANCE
    assert apart(trained, logits(multiplied_out(llama, [(1.0, now)], cache))) < TOLERANCE


def test_over_a_base_of_half_precision_z_is_fp32(llama, cache):
    llama.to(torch.bfloat16)
    with attach(llama, {"x": expert(llama, LLAMA, cache)}) as session:
        leaves = session.parameters("x")
        ids = torch.randint(0, 40, (3, 6))
        with session.use("x"):
            llama(input_ids=ids, labels=ids).loss.backward()
    assert {leaf.dtype for leaf in leaves} == {torch.float32}
    assert all(bool(leaf.grad.abs().max() > 0) for leaf in leaves)


def test_a_gradient_reaches_what_entered_the_model(llama, pair, cache, in_double):
    llama.double()
    merged = multiplied_out(llama, [(1.0, pair["a"])], cache)
    x = torch.randn(2, 4, llama.config.hidden_size, dtype=torch.float64)
    grads = []
    with attach(llama, pair) as session:
        for model, choice in ((merged, None), (llama, "a")):
            leaf = x.clone().requires_grad_()
            with session.use(choice):
                model(inputs_embeds=leaf).logits.square().sum().backward()
            grads.append(leaf.grad)
        with session.route(["a", None]):
            leaf = x.clone().requires_grad_()
            llama(inputs_embeds=leaf).logits.square().sum().backward()
    assert apart(grads[0], grads[1]) < EXACT * grads[0].abs().max()
    assert apart(leaf.grad[0], grads[1][0]) < EXACT * grads[0].abs().max()


# --- what is refused, before the first hook


def refused(model, adapter, **options):
    before, base = hook_count(model), logits(model)
    with pytest.raises(RefusedError) as caught:
        attach(model, {"x": adapter}, **options)
    assert hook_count(model) == before
    assert torch.equal(logits(model), base)
    return caught.value.problems


def test_another_base_is_refused_at_every_module(llama, pair):
    problems = refused(tiny_model("llama", seed=1), pair["a"])
    assert [problem.code for problem in problems] == ["base-mismatch"] * 9


def test_every_weight_is_held_to_its_hash_before_one_is_decomposed(llama, pair, cache):
    shutil.rmtree(cache.folder)
    with torch.no_grad():
        llama.get_submodule("model.layers.2.mlp.gate_proj").weight.add_(1)
    (problem,) = refused(llama, pair["a"])
    assert problem.where == "x: expert1 layers.2.gate"
    assert not cache.folder.exists()


def test_numbers_that_are_not_finite_are_refused_by_site(llama, pair):
    z = np.full(pair["a"].deltas[next(t for t in pair["a"].deltas if t.path.endswith("k_proj"))].z.shape, np.nan)
    problems = refused(llama, changed(pair["a"], {"z": Tensor.of(z.astype(np.float32))}, "k_proj"))
    assert [problem.code for problem in problems] == ["nonfinite"] * 3
    assert all(problem.where.endswith(".k") for problem in problems)


def test_a_weight_is_hashed_once_a_session_and_again_when_it_has_changed(llama, pair, cache, monkeypatch):
    weights, vectors, digest = [], [], decompositions._hash
    monkeypatch.setattr(decompositions, "as_stored", lambda weight: weights.append(weight) or as_stored(weight))
    monkeypatch.setattr(decompositions, "_hash", lambda tensor: vectors.append(tensor) or digest(tensor))
    with attach(llama, {"a": pair["a"]}) as session:
        session.load("b", pair["b"])
        assert (len(weights), len(vectors)) == (18, 18)  # to be held to its hash, and to be decomposed
        with torch.no_grad():
            llama.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(2)
        with pytest.raises(RefusedError, match="SHA-256") as caught:
            session.load("c", pair["b"])
        assert len(caught.value.problems) == 1
        assert session.adapters == ("a", "b")


def test_damaged_singular_values_are_refused_also_where_the_weight_is_known(llama, pair):
    S = pair["a"].deltas[next(iter(pair["a"].deltas))].S.numpy() * np.float32(1.01)
    other = changed(pair["a"], {"S": Tensor.of(S)}, next(iter(pair["a"].deltas)).path)
    with attach(llama, pair) as session, pytest.raises(RefusedError, match="singular values") as caught:
        session.load("c", other)
    assert len(caught.value.problems) == 1
    assert len(refused(llama, other)) == 1


def test_decompositions_that_were_thrown_away_are_made_again(llama, pair, cache):
    with attach(llama, pair) as session:
        shutil.rmtree(cache.folder)
        for name in pair:
            session.unload(name)
        gc.collect()
        session.load("a", pair["a"])
        with session.use("a"):
            again = logits(llama)
    assert apart(again, logits(multiplied_out(llama, [(1.0, pair["a"])], cache))) < TOLERANCE


def test_a_bias_beside_a_spectral_delta_is_refused(cache):
    model = tiny_model("gpt2")
    bias = Tensor.of(np.ones(4 * model.config.n_embd, np.float32))
    extras = {"transformer.h.1.mlp.c_fc.bias": Extra("bias", bias)}
    (problem,) = refused(model, replace(expert(model, ["c_fc"], cache), extras=extras))
    assert "beside a spectral delta" in problem.found


def test_slots_and_embeddings_and_quantised_weights_are_refused_by_name(llama, pair, cache):
    (*_, problem) = refused(llama, pair["a"], slots=2)
    assert "spectral" in problem.found
    (problem,) = refused(llama, expert(llama, ["embed_tokens"], cache))
    assert "tokens" in problem.found
    module = llama.get_submodule("model.layers.0.self_attn.k_proj")
    own = module.weight
    module.weight = torch.nn.Parameter(own.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(RefusedError, match="quantised"):
        attach(llama, pair)


def test_spectral_kernels_are_what_acts(llama, pair):
    with attach(llama, pair) as session, session.use("a"):
        assert {type(kernel) for kernel in session._hooks.current.kernels.values()} == {SpectralKernel}
