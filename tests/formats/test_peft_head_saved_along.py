"""Heads that peft saves whole along with a LoRA on them: the base's own weight, and the bias that some have."""

import pytest
import torch

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair
from tests.helpers.other_families import of

_IDS = torch.tensor([[3, 5, 7, 9, 11]])


def _gptj():
    keys = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64, "tie_word_embeddings": False}
    model = of("GPTJForCausalLM", vocab_size=96, bos_token_id=1, eos_token_id=2, **keys)
    with torch.no_grad():
        model.lm_head.bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_the_bias_of_a_head_is_the_base_s_own(tmp_path):
    made = pair(tmp_path, build=_gptj, targets=["lm_head", "q_proj"])
    assert "lm_head.base_layer.bias" in adaptrix.load(made.adapter).extras
    model = _gptj()
    with torch.no_grad(), adaptrix.attach(model, {"a": made.adapter}) as session:
        session.activate("a")
        torch.testing.assert_close(model(input_ids=_IDS).logits, made.model(input_ids=_IDS).logits, atol=1e-5, rtol=0)
    made.merge(tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    for name, tensor in made.peft_merged().items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        model.lm_head.bias.add_(1)
    with pytest.raises(RefusedError, match=r"lm_head.base_layer.bias.*the model has another"):
        adaptrix.attach(model, {"a": made.adapter})
