"""PEFT types that are a LoRA in another parametrisation go every road that a LoRA goes; peft is the judge."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

import adaptrix
from adaptrix.delta import LowRank, vera
from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.planning import lowering
from adaptrix.tensor import Tensor
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import CONFIG, logits, rewrite, same_config, same_tensors, save, weights
from tests.helpers.peft_types import save_of

QVD = ["q_proj", "v_proj", "down_proj"]
MASKS = {"q_proj": [True, False, True, False, False], "v_proj": [False] * 5, "down_proj": [True] * 5}


def pruned() -> dict:
    """A rank_pattern as AdaLoRA's allocator leaves it: some ranks of a module, none of another, all of a third."""
    roles = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
    return {
        f"model.layers.{layer}.{roles[name]}.{name}.lora_E.default": mask
        for layer in range(3)
        for name, mask in MASKS.items()
    }


CASES = {
    "AdaLoRA": ("ADALORA", "llama", {"lora_alpha": 7}),
    "AdaLoRA pruned": ("ADALORA", "llama", {"lora_alpha": 7, "rank_pattern": pruned()}),
    "AdaLoRA without alpha": ("ADALORA", "llama", {"lora_alpha": 0, "rank_pattern": pruned()}),
    "AdaLoRA on Conv1D": ("ADALORA", "gpt2", {"lora_alpha": 7, "target_modules": ["c_attn", "c_fc"], "bias": "all"}),
    "LoHa": ("LOHA", "llama", {"r": 3, "alpha": 7}),
    "LoHa of full rank": ("LOHA", "llama", {"r": 6, "alpha": 7}),
    "LoHa with patterns": (
        "LOHA", "qwen2", {"r": 2, "alpha": 5, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"1.mlp.down_proj": 3}}
    ),
    "LoKr": ("LOKR", "llama", {"r": 2, "alpha": 7}),
    "LoKr of two factors": ("LOKR", "llama", {"r": 1, "alpha": 7, "decompose_both": True}),
    "LoKr of whole matrices": ("LOKR", "llama", {"r": 16, "alpha": 7, "decompose_factor": 4, "rank_dropout": 0.5}),
    "VeRA": ("VERA", "llama", {"r": 5}),
    "VeRA without its projections": ("VERA", "qwen2", {"r": 5, "save_projection": False, "projection_prng_key": 77}),
    "VeRA on Conv1D": ("VERA", "gpt2", {"r": 30, "target_modules": ["c_attn", "mlp.c_proj"]}),
    "MiSS": ("MISS", "llama", {"r": 4}),
    "MiSS of a rank that does not divide": ("MISS", "llama", {"r": 7, "bias": "none"}),
    "MiSS mini": ("MISS", "qwen2", {"r": 4, "init_weights": "mini", "mini_r": 2}),
    "GraLoRA": ("GRALORA", "llama", {"r": 4, "alpha": 7, "gralora_k": 2}),
    "GraLoRA with a LoRA": ("GRALORA", "llama", {"r": 2, "alpha": 7, "gralora_k": 2, "hybrid_r": 1}),
    "DeLoRA": ("DELORA", "llama", {"r": 3, "delora_lambda": 5}),
    "DeLoRA with patterns": (
        "DELORA", "qwen2", {"r": 3, "rank_pattern": {"v_proj": 2}, "lambda_pattern": {"q_proj": 3}}
    ),
    "VB-LoRA": ("VBLORA", "llama", {"r": 3, "num_vectors": 9, "vector_length": 2}),
    "VB-LoRA of weights": (
        "VBLORA", "llama", {"r": 3, "topk": 3, "num_vectors": 9, "vector_length": 2, "save_only_topk_weights": True}
    ),
    "FourierFT": ("FOURIERFT", "llama", {"n_frequency": 50, "scaling": 30.0, "random_loc_seed": 5}),
    "FourierFT on Conv1D": ("FOURIERFT", "gpt2", {"n_frequency": 50, "target_modules": ["c_attn"]}),
    "SHiRA": ("SHIRA", "llama", {"r": 2}),
    "C3A": ("C3A", "llama", {"block_size": 2}),
    "LoKr with a saved head": ("LOKR", "llama", {"r": 2, "alpha": 7, "modules_to_save": ["lm_head"]}),
}  # fmt: skip


@pytest.fixture(params=CASES)
def saved(request, tmp_path):
    kind, family, keys = CASES[request.param]
    saved = save_of(kind, tmp_path, family, **{"target_modules": QVD} | keys)
    return replace(saved, logits=logits(load(saved)))  # what is saved is pruned


def load(saved, folder=None):
    """The model with an adapter, as peft loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(saved.build(), folder or saved.folder).eval()


def peft_deltas(saved):
    """ΔW ``[out, in]`` by path, as peft computes it."""
    found = {}
    for path, module in load(saved).get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "get_delta_weight"):
            turned = isinstance(module.get_base_layer(), Conv1D) and saved.config["peft_type"] != "FOURIERFT"
            weight = module.get_base_layer().weight.detach().clone()
            if saved.config["peft_type"] == "MISS":  # which has no ΔW of its own
                delta = module.get_delta_weight_miss("default", weight.clone()).double() - weight.double()
            else:
                delta = module.get_delta_weight("default").to_dense().double()
            found[path] = (delta.T if turned else delta).detach().numpy()
    return found


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
    kind, family, keys = CASES[request.param]
    one = save_of(kind, tmp_path / "one", family, **{"target_modules": QVD} | keys)
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
    kind, family, keys = CASES[name]
    saved = save_of(kind, tmp_path, family, **{"target_modules": ["down_proj"]} | keys)
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


def changed(**shapes):
    """Replaces tensors of the first module by zeros of other shapes; None removes one."""

    def change(tensors):
        name = next(name for name in tensors if "layers.0.self_attn.q_proj" in name).rpartition(".")[0]
        for leaf, shape in shapes.items():
            tensors.pop(f"{name}.{leaf}", None)
            if shape is not None:
                tensors[f"{name}.{leaf}"] = torch.zeros(shape)
        return tensors

    return change


def keys_of(keys):
    """Those that the adapter is made with, and not changed to later."""
    return {key: value for key, value in keys.items() if key == "save_only_topk_weights"}


def outside(tensors):
    return {name: t + 99 if name.endswith("indices") else t for name, t in tensors.items()}


BANK = "base_model.vblora_vector_bank"
HALF = "gralora_A_general.weight"
BAD = {
    "a LoHa without a part": ("LOHA", changed(hada_w2_b=None), {}, "adapter-incomplete"),
    "a LoHa of two shapes": ("LOHA", changed(hada_w2_b=(3, 20)), {}, "shape"),
    "a LoHa whose factors do not fit": ("LOHA", changed(hada_w1_b=(4, 24)), {}, "rank"),
    "another rank": ("LOHA", None, {"r": 5}, "rank"),
    "an alpha of text": ("LOHA", None, {"alpha": "7"}, "config-value"),
    "a convolution": ("LOHA", changed(hada_t1=(3, 3, 2, 2)), {}, "variant-unsupported"),
    "a LoKr with both": ("LOKR", changed(lokr_w1_a=(4, 2)), {}, "adapter-incomplete"),
    "a huge LoKr": (
        "LOKR",
        changed(lokr_w1=(999, 999), lokr_w2=(999, 999), lokr_w2_a=None, lokr_w2_b=None),
        {},
        "shape",
    ),
    "an AdaLoRA without E": ("ADALORA", changed(lora_E=None), {}, "adapter-incomplete"),
    "an AdaLoRA of another rank": ("ADALORA", None, {"init_r": 4}, "rank"),
    "masks that are ranks": ("ADALORA", None, {"rank_pattern": {"x.lora_E": 3}}, "config-value"),
    "a VeRA without b": ("VERA", changed(vera_lambda_b=None), {"r": 3}, "adapter-incomplete"),
    "a VeRA of another rank": ("VERA", None, {"r": 4}, "rank"),
    "projections that are too small": ("VERA", lambda t: t | {"base_model.vera_A": torch.zeros(3, 7)}, {}, "shape"),
    "projections of another rank": ("VERA", lambda t: t | {"base_model.vera_A": torch.zeros(4, 99)}, {}, "shape"),
    "a MiSS of another size": ("MISS", changed(miss_block=(3, 19)), {"r": 3}, "shape"),
    "a MiSS on the base": ("MISS", None, {"init_weights": "bat"}, "variant-unsupported"),
    "a GraLoRA of unequal blocks": ("GRALORA", changed(gralora_A=(3, 8, 4)), {"gralora_k": 2}, "shape"),
    "a GraLoRA with half a LoRA": (
        "GRALORA",
        changed(**{"gralora_A_general.weight": (1, 24)}),
        {},
        "adapter-incomplete",
    ),
    "a DeLoRA without the norms of the base": ("DELORA", changed(delora_w_norm=None), {}, "adapter-incomplete"),
    "a VB-LoRA of another rank": ("VBLORA", changed(vblora_logits_A=(3, 12, 20)), {}, "rank"),
    "a bank of other vectors": (
        "VBLORA",
        lambda t: t | {BANK: torch.zeros(7, 2)},
        {},
        "shape",
    ),
    "a spectrum of two dimensions": ("FOURIERFT", changed(fourierft_spectrum=(4, 5)), {}, "shape"),
    "places of another base": ("SHIRA", outside, {}, "shape"),
    "vectors that the bank has not": ("VBLORA", outside, {"save_only_topk_weights": True}, "shape"),
    "a SHiRA without its places": ("SHIRA", changed(shira_indices=None), {}, "adapter-incomplete"),
    "a flat C3A": ("C3A", changed(c3a_kernel=(10, 12)), {}, "shape"),
    "a module that is no target": ("LOHA", None, {"target_modules": ["v_proj"]}, "config-mismatch"),
    "a target without tensors": (
        "LOKR",
        None,
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "adapter-incomplete",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name, tmp_path):
    kind, change, keys, code = BAD[name]
    saved = save_of(kind, tmp_path, **({"r": 3} if kind in ("LOHA", "LOKR", "VERA", "MISS") else {}), **keys_of(keys))
    rewrite(saved.folder, change, **keys)
    report = adaptrix.check(saved.folder, saved.base)
    assert code in {problem.code for problem in report.problems if problem.severity == "error"}
    assert all(problem.found for problem in report.problems)


SETTINGS = (
    {},
    {"in": 24},
    {"in": "24", "widest": 24, "tallest": 24, "seed": 0},
    {"in": -1, "widest": 24, "tallest": 24, "seed": 0},
    {"in": 24, "widest": 24, "tallest": 24, "seed": 1 << 64},
    {"in": 24, "widest": 1 << 31, "tallest": 1 << 31, "seed": 0},
    {"in": 24, "widest": 24, "tallest": 24, "seed": 0, "more": 1},
    {"in": 24, "widest": 7, "tallest": 24, "seed": 0},
    [24],
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_of_a_file_that_are_none_are_refused_at_once(settings, tmp_path):
    saved = save_of("VERA", tmp_path, r=3, save_projection=False)
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base)
    with safe_open(file, "np") as held:
        manifest = json.loads(held.metadata()["adaptrix"])
    manifest["deltas"]["layers.1.q"]["settings"] = settings
    safetensors_file.write(tmp_path / "b.adaptrix.safetensors", weights_of(file), {"adaptrix": json.dumps(manifest)})
    start = time.monotonic()
    with pytest.raises(RefusedError) as error:
        adaptrix.convert(tmp_path / "b.adaptrix.safetensors", tmp_path / "c.adaptrix.safetensors")
    assert error.value.problems[0].code in ("injection-invalid", "shape")
    assert time.monotonic() - start < 2


def weights_of(file):
    return {name: Tensor(t.dtype, t.shape, t.tobytes()) for name, t in safetensors_file.read(file)[0].items()}


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
