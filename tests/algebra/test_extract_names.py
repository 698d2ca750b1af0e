"""Fine-tunes whose files have other names than their modules: peft loads what is extracted from them."""

import copy

import peft
import torch

import adaptrix
from tests.helpers.merge_models import pair
from tests.helpers.other_families import TEXT, of

_IDS = torch.tensor([[3, 5, 7, 9, 11]])


def _llava():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "clip_vision_model", "projection_dim": 12}
    text = {**TEXT, "model_type": "llama"}
    return of("LlavaForConditionalGeneration", text_config=text, vision_config=vision, image_token_index=90)


def test_peft_loads_what_is_extracted(tmp_path):
    made = pair(tmp_path, build=_llava, target_modules=r".*language_model.*(q_proj|down_proj)")
    copy.deepcopy(made.model).merge_and_unload().save_pretrained(tmp_path / "tuned")
    adaptrix.extract(tmp_path / "tuned", made.base, 3, tmp_path / "out", to="peft")
    base = type(_llava()).from_pretrained(made.base).eval()
    with torch.no_grad():
        wanted, plain = (model(input_ids=_IDS).logits for model in (made.model, base))
        found = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()(input_ids=_IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert not torch.allclose(found, plain, atol=1e-2)
