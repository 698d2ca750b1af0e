"""(IA)³: numbers that multiply a weight's rows or columns go every road; peft is the judge."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch

import adaptrix
from adaptrix.adapter import Target
from adaptrix.delta import Scale
from adaptrix.errors import RefusedError, UsageError
from adaptrix.runtime.scale import ScaleKernel
from tests.helpers.peft_models import CONFIG, TEXT, logits, rewrite, same_config, same_tensors, save, weights
from tests.helpers.peft_types import save_of

#: the last has biases on all of them, and weights stored [in, out]
CASES = {
    "llama": ("llama", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "biases": ("qwen2", {"target_modules": ["q_proj", "v_proj", "up_proj"], "feedforward_modules": ["up_proj"]}),
    "Conv1D": (
        "gpt2", {"target_modules": ["c_attn", "mlp.c_proj", "c_fc"], "feedforward_modules": ["mlp.c_proj", "c_fc"]}
    ),
    "regexes": ("llama", {"target_modules": r".*\.[02]\..*(k|down)_proj", "feedforward_modules": r".*down_proj"}),
    "a saved head": ("llama", {"target_modules": ["k_proj", "lm_head"], "modules_to_save": ["norm"]}),
}  # fmt: skip


@pytest.fixture(params=CASES)
def saved(request, tmp_path):
    family, keys = CASES[request.param]
    return save_of("IA3", tmp_path, family, **keys)


def load(saved, folder=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(saved.build(), folder or saved.folder).eval()


def attached(saved, uri, **weights):
    model = saved.build().eval()
    with adaptrix.attach(model, {"one": uri}) as session, session.use(weights or "one"):
        return logits(model)


def test_it_acts_and_is_merged_as_by_peft(saved, tmp_path):
    report = adaptrix.check(saved.folder, saved.base)
    assert [p for p in report.problems if p.severity != "note"] == []
    assert any("l − 1" in p.found for p in report.problems)
    assert {type(delta) for delta in report.bound.deltas.values()} == {Scale}
    assert torch.allclose(attached(saved, saved.folder), saved.logits, atol=1e-5)
    assert not torch.allclose(logits(saved.build()), saved.logits, atol=1e-3)
    model = saved.build()
    model.save_pretrained(tmp_path / "model")
    merged = adaptrix.merge(saved.folder, tmp_path / "model", tmp_path / "merged")
    assert torch.allclose(logits(type(model).from_pretrained(merged)), saved.logits, atol=1e-5)


def test_what_is_merged_is_what_peft_merges(saved, tmp_path):
    saved.build().save_pretrained(tmp_path / "model")
    merged = adaptrix.merge(saved.folder, tmp_path / "model", tmp_path / "merged")
    wanted = load(saved).merge_and_unload().state_dict()
    found = type(saved.build()).from_pretrained(merged).state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_it_goes_into_an_injection_file_and_comes_back_as_it_was(saved, tmp_path):
    file = adaptrix.convert(saved.folder, tmp_path / "one.adaptrix.safetensors", base=saved.base)
    assert torch.allclose(attached(saved, file), saved.logits, atol=1e-5)
    for source, name in ((file, "from the file"), (saved.folder, "at once")):
        back = adaptrix.convert(source, tmp_path / name, to="peft")
        same_tensors(saved.tensors, weights(back))
        same_config(saved.folder, back)
        assert json.loads((back / CONFIG).read_text()) == saved.config


def test_a_part_of_it_is_an_ia3_that_peft_loads(tmp_path):
    saved = save_of("IA3", tmp_path, **CASES["llama"][1])
    made = adaptrix.convert(saved.folder, tmp_path / "part", to="peft", base=saved.base, layers="0-1", prune=True)
    assert json.loads((made / CONFIG).read_text())["peft_type"] == "IA3"
    file = adaptrix.convert(saved.folder, tmp_path / "a.adaptrix.safetensors", base=saved.base, layers="0-1")
    assert torch.allclose(logits(load(saved, made)), attached(saved, file), atol=1e-5)
    assert not torch.allclose(logits(load(saved, made)), saved.logits, atol=1e-4)


@pytest.fixture
def beside(tmp_path):
    """An (IA)³ and a LoRA on the same modules, and another (IA)³."""
    keys = CASES["biases"][1]
    one, other = (save_of("IA3", tmp_path / name, "qwen2", **keys) for name in ("one", "other"))
    rewrite(other.folder, lambda tensors: {name: 1 - 2 * (tensor - 1) for name, tensor in tensors.items()})
    return one, other, save(tmp_path / "lora", "qwen2", target_modules=["q_proj", "k_proj", "up_proj"], use_dora=True)


def test_sums_are_sums_of_changes(beside, tmp_path):
    """W + Σ wᵢ·ΔWᵢ, biases too: what the merged weights of each say."""
    one, other, _ = beside
    lora = save(tmp_path / "plain", "qwen2", target_modules=["q_proj", "k_proj", "up_proj"])
    base, model = one.build().state_dict(), one.build().eval()
    session = adaptrix.attach(model, {"one": one.folder, "other": other.folder, "lora": lora.folder})
    with session, session.use({"one": 0.5, "other": -2.0, "lora": 1.5}):
        mixed = logits(model)
    merged = [
        (weight, load(each).merge_and_unload().state_dict())
        for weight, each in ((0.5, one), (-2.0, other), (1.5, lora))
    ]
    model.load_state_dict({name: t + sum(w * (state[name] - t) for w, state in merged) for name, t in base.items()})
    assert torch.allclose(mixed, logits(model), atol=1e-5)


def test_rows_have_their_own(beside):
    one, other, lora = beside
    model, rows = one.build().eval(), TEXT.repeat(4, 1)
    with adaptrix.attach(model, {"one": one.folder, "other": other.folder, "lora": lora.folder}) as session:
        with session.route(["one", "lora", None, "other"]), torch.no_grad():
            routed = model(rows).logits
        apart = []
        for name in ("one", "lora", None, "other"):
            with session.use(name), torch.no_grad():
                apart.append(model(TEXT).logits[0])
    assert torch.allclose(routed, torch.stack(apart), atol=1e-5)
    assert torch.allclose(apart[1], lora.logits[0], atol=1e-5)


def test_half_precision_keeps_small_changes(tmp_path):
    """The numbers l are near 1, where bf16 has steps of 1/128: a change of 1/500 would be lost."""
    saved = save_of("IA3", tmp_path, **CASES["llama"][1])
    rewrite(saved.folder, lambda tensors: {name: 1 + 0.002 * torch.sign(t - 1) for name, t in tensors.items()})
    module = saved.build().model.layers[0].self_attn.k_proj.bfloat16()
    delta = adaptrix.load(saved.folder).deltas[Target("model.layers.0.self_attn.k_proj")]
    kernel = ScaleKernel(torch.from_numpy(delta.change).float())
    x = torch.randn(5, module.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        y = module(x)
        assert torch.equal(
            kernel.add(x, y), (y.float() * torch.from_numpy(delta.vector.numpy()[:, 0].copy())).bfloat16()
        )
        model = saved.build().bfloat16().eval()
        with adaptrix.attach(model, {"one": saved.folder}) as session, session.use("one"):
            acting = logits(model)
    wanted = load(replace(saved, build=lambda: saved.build().bfloat16()))
    assert torch.allclose(acting.float(), logits(wanted).float(), atol=0.01)


def test_it_is_trained(tmp_path):
    saved = save_of("IA3", tmp_path, **CASES["llama"][1])
    model, judge = saved.build(), load(saved)
    for name, tensor in judge.named_parameters():
        tensor.requires_grad_("ia3_l" in name)
    judge(TEXT, labels=TEXT).loss.backward()
    wanted = {n.split("model.model.")[-1]: t.grad for n, t in judge.named_parameters() if t.grad is not None}
    with adaptrix.attach(model, {"one": saved.folder}) as session:
        leaves = session.named_parameters("one")
        session.activate("one")
        model(TEXT, labels=TEXT).loss.backward()
        assert len(leaves) == len(wanted) == 9
        assert sorted(float(t.grad.norm()) for t in leaves.values()) == pytest.approx(
            sorted(float(grad.norm()) for grad in wanted.values()), rel=1e-4
        )
        with torch.no_grad():
            for leaf in leaves.values():
                leaf.add_(1.0)
        now = session.adapter("one")
    for target, delta in adaptrix.load(saved.folder).deltas.items():
        assert np.allclose(now.deltas[target].change, delta.change + 1.0, atol=1e-6)


def test_what_needs_a_lora_says_what_can_be_done(tmp_path):
    saved = save_of("IA3", tmp_path, **CASES["llama"][1])
    attempts = (
        lambda: adaptrix.combine([saved.folder, saved.folder], out=tmp_path / "sum.adaptrix.safetensors"),
        lambda: adaptrix.convert(saved.folder, tmp_path / "b.adaptrix.safetensors", rank=2),
        lambda: adaptrix.convert(saved.folder, tmp_path / "c", to="peft", rank=2),
        lambda: adaptrix.attach(saved.build(), {"one": saved.folder}, slots=2, max_rank=4),
    )
    for attempt in attempts:
        with pytest.raises((RefusedError, UsageError)) as error:
            attempt()
        assert "extract" in error.value.problems[0].remedy or "slots" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "base"}


def changed(shape):
    def change(tensors):
        name = next(name for name in tensors if "layers.0.self_attn.k_proj" in name)
        return tensors | {name: torch.ones(shape)}

    return change


BAD = {
    "other feedforward modules": (None, {"feedforward_modules": []}, "config-mismatch"),
    "feedforward modules that are none": (None, {"feedforward_modules": ["down_proj", "k_proj"]}, "config-mismatch"),
    "a number for modules": (None, {"feedforward_modules": 3}, "config-value"),
    "a flat vector": (changed((8,)), {}, "shape"),
    "another size": (changed((9, 1)), {}, "shape"),
    "a convolution": (changed((1, 8, 1, 1)), {}, "variant-unsupported"),
    "whole numbers": (lambda tensors: {name: t.int() for name, t in tensors.items()}, {}, "dtype"),
    "a module that is no target": (None, {"target_modules": ["v_proj", "down_proj"]}, "config-mismatch"),
    "a layer is missing": (
        lambda tensors: {n: t for n, t in tensors.items() if ".1." not in n},
        {},
        "adapter-incomplete",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name, tmp_path):
    change, keys, code = BAD[name]
    saved = save_of("IA3", tmp_path, **CASES["llama"][1])
    rewrite(saved.folder, change, **keys)
    report = adaptrix.check(saved.folder, saved.base)
    assert code in {problem.code for problem in report.problems if problem.severity == "error"}
