"""Biases of a head that peft saves under two names, with its own merge as the judge."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptrix.errors import RefusedError
from tests.helpers.merge_models import as_torch, assert_equal_bits, pair, tensors


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("family", "head"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_a_bias_of_the_head_that_peft_saves_twice(family, head, stored, tmp_path):
    """``stored``: as older files have it, with the tied weight of the head and one of the two names of its bias."""
    made = pair(tmp_path, family, targets=["query"], bias="all")
    names = (f"{head}.bias", f"{head}.decoder.bias")
    saved = tensors(made.adapter)
    one, two = (as_torch(saved[f"base_model.model.{name}"]) for name in names)
    assert torch.equal(one, two)
    base = {name: as_torch(tensor) for name, tensor in tensors(made.base).items()}
    assert not torch.equal(base[names[0]], one)
    assert names[1] not in base
    if stored:
        base[f"{head}.decoder.weight"] = base[f"{family}.embeddings.word_embeddings.weight"].clone()
        save_file(base, made.base / "model.safetensors", metadata={"format": "pt"})
    made.merge(tmp_path / "out")
    assert_equal_bits(tmp_path / "out", made)


def test_two_biases_of_the_head_that_differ_are_no_twins(tmp_path):
    made = pair(tmp_path, "bert", targets=["query"], bias="all")
    file = made.adapter / "adapter_model.safetensors"
    changed = load_file(file)
    changed["base_model.model.cls.predictions.decoder.bias"] += 1
    save_file(changed, file)
    with pytest.raises(RefusedError, match=r"decoder\.bias"):
        made.merge(tmp_path / "out")
