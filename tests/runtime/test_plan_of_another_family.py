"""Injection files that were written without a base, whose modules were taken for those of another family."""

import pytest
import torch

import adaptrix
from tests.helpers.merge_models import pair
from tests.helpers.other_families import TEXT, of

_IDS = torch.tensor([[3, 5, 7, 9, 11]])


def _smollm3():
    return of("SmolLM3ForCausalLM", **TEXT)


def _logits(model, adapter):
    with torch.no_grad(), adaptrix.attach(model, {"a": adapter}) as session:
        session.activate("a")
        return model(input_ids=_IDS).logits


@pytest.mark.filterwarnings("ignore::adaptrix.AdaptrixWarning")
@pytest.mark.parametrize("options", [{}, {"layers": "1"}, {"layers": "0", "redistribute": "nearest"}])
def test_attached_as_one_that_was_written_with_the_base(options, tmp_path):
    made = pair(tmp_path, build=_smollm3, targets=["q_proj", "down_proj"])
    apart = adaptrix.convert(made.adapter, tmp_path / "apart", **options)
    bound = adaptrix.convert(made.adapter, tmp_path / "bound", base=made.base, **options)
    found, model = _logits(_smollm3(), apart), _smollm3()
    torch.testing.assert_close(found, _logits(model, bound), atol=1e-5, rtol=0)
    if not options:
        with torch.no_grad():
            torch.testing.assert_close(found, made.model(input_ids=_IDS).logits, atol=1e-5, rtol=0)
    assert not torch.allclose(found, model(input_ids=_IDS).logits, atol=1e-2)


@pytest.mark.filterwarnings("ignore::adaptrix.AdaptrixWarning")
def test_merged_as_peft_does(tmp_path):
    made = pair(tmp_path, build=_smollm3, targets=["q_proj", "down_proj"])
    made = type(made)(made.base, adaptrix.convert(made.adapter, tmp_path / "apart"), made.model)
    made.merge(tmp_path / "out")
    found = type(_smollm3()).from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    for name, tensor in made.peft_merged().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)
