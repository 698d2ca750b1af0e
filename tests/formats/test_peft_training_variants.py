"""Variants that differ from LoRA in training alone, and targeted parameters that match nothing: peft is the judge."""

from __future__ import annotations

import peft
import pytest
import torch

import adaptrix
from tests.helpers.peft_models import TEXT, Saved, assert_lossless, logits, rewrite, save

QV = ["q_proj", "v_proj"]
VARIANTS = {
    "VeLoRA": {"velora_config": peft.VeloraConfig(num_groups=4)},
    "VeLoRA at random": {"velora_config": peft.VeloraConfig(num_groups=5, init_type="random")},
    "MonteCLoRA": {"monteclora_config": peft.MontecloraConfig(num_samples=3, buffer_size=2)},
}


@pytest.fixture(params=VARIANTS)
def variant(request, tmp_path):
    return save(tmp_path, target_modules=QV, **VARIANTS[request.param])


def without(saved: Saved, *words: str) -> None:
    """Removes the tensors whose names have one of the words."""
    rewrite(saved.folder, lambda found: {n: t for n, t in found.items() if not any(word in n for word in words)})


@pytest.mark.parametrize("whole", [True, False], ids=["with its own tensors", "without"])
def test_a_variant_of_training_acts_as_the_lora_that_it_is(variant, whole, tmp_path):
    if not whole:
        without(variant, "velora", "monteclora")
    report = adaptrix.check(variant.folder, variant.base)
    assert report.ok
    assert [p.severity for p in report.problems if "plain LoRA" in p.found] == ["note"]
    model = variant.build().eval()
    with adaptrix.attach(model, {"one": variant.folder}) as session, session.use("one"):
        assert torch.allclose(logits(model), variant.logits, atol=1e-5)
    model.save_pretrained(tmp_path / "model")
    merged = adaptrix.merge(variant.folder, tmp_path / "model", tmp_path / "merged")
    assert torch.allclose(logits(type(model).from_pretrained(merged)), variant.logits, atol=1e-5)


def test_a_variant_of_training_goes_there_and_back(variant, tmp_path):
    assert_lossless(variant, tmp_path)


def test_a_variant_of_training_is_trained_as_a_lora(variant):
    model = variant.build()
    with adaptrix.attach(model, {"one": variant.folder}) as session:
        leaves = session.named_parameters("one")
        session.activate("one")
        model(TEXT, labels=TEXT).loss.backward()
        assert all(leaf.grad is not None for leaf in leaves.values())


def test_two_variants_at_once_are_refused(tmp_path):
    saved = save(tmp_path, target_modules=QV, **VARIANTS["VeLoRA"])
    rewrite(saved.folder, monteclora_config={"num_samples": 3})
    (problem,) = [p for p in adaptrix.check(saved.folder, saved.base).problems if p.severity == "error"]
    assert problem.code == "variant-unsupported"
    assert "monteclora_config" in problem.found


def test_targeted_parameters_that_match_nothing_are_passed_over_as_by_peft(tmp_path):
    saved = save(tmp_path, target_modules=QV, target_parameters=["mlp.experts.gate_up_proj", "experts.down_proj"])
    report = adaptrix.check(saved.folder, saved.base)
    assert report.ok
    assert len([p for p in report.problems if p.severity == "note" and "experts" in p.found]) == 2
    model = saved.build()
    with adaptrix.attach(model, {"one": saved.folder}) as session, session.use("one"):
        assert torch.allclose(logits(model), saved.logits, atol=1e-5)
    assert_lossless(saved, tmp_path)


@pytest.mark.parametrize("lost", [".base_layer.lora", "experts"], ids=["one of two", "both"])
def test_parameters_that_the_base_has_still_have_to_be_there(lost, tmp_path):
    names = ["experts.gate_up_proj", "experts.down_proj"]
    saved = save(tmp_path, "qwen3_moe", target_modules=QV, target_parameters=names)
    without(saved, lost)
    (code,) = {p.code for p in adaptrix.check(saved.folder, saved.base).problems if p.severity == "error"}
    assert code == "adapter-incomplete"
