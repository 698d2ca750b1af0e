"""Kinds of models that fidelity measures on text: those that see pictures too, and those that keep states, no keys."""

import pytest
import torch

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair
from tests.helpers.other_families import TEXT, of

IDS = torch.randint(3, 67, (40,), generator=torch.Generator().manual_seed(5))


def _llava():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "clip_vision_model", "projection_dim": 12}
    text = {**TEXT, "model_type": "llama"}
    return of("LlavaForConditionalGeneration", text_config=text, vision_config=vision, image_token_index=90)


def _mamba():
    return of("MambaForCausalLM", vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)


def _kl(model, plain):
    with torch.no_grad():
        full, base = (one(input_ids=IDS[None]).logits[0, :-1].double().log_softmax(-1) for one in (model, plain))
    return float((full.exp() * (full - base)).sum(-1).mean())


@pytest.mark.filterwarnings("ignore::adaptrix.AdaptrixWarning")
@pytest.mark.parametrize(
    ("build", "names"), [(_llava, r".*language_model.*q_proj"), (_mamba, ["in_proj"])], ids=["llava", "mamba"]
)
def test_the_base_is_as_far_as_peft_has_it(build, names, tmp_path):
    made = pair(tmp_path, build=build, target_modules=names)
    report = adaptrix.fidelity(made.adapter, made.base, IDS, ["1"])
    plain = type(build()).from_pretrained(made.base).eval()
    assert report.rows[-1].kl.value == pytest.approx(_kl(made.model, plain), rel=1e-3)
    assert not [problem for problem in report.problems if problem.severity == "warning" and problem.where == "adapter"]


@pytest.mark.filterwarnings("ignore::adaptrix.AdaptrixWarning")
def test_an_adapter_that_text_does_not_reach_is_said(tmp_path):
    made = pair(tmp_path, build=_llava, target_modules=r".*vision_tower.*q_proj")
    report = adaptrix.fidelity(made.adapter, made.base, IDS, ["1"])
    said = [problem.found for problem in report.problems if problem.code == "measurement-limit"]
    assert any("answers without it as with all of it" in found for found in said)


@pytest.mark.filterwarnings("ignore::adaptrix.AdaptrixWarning")
def test_a_merge_of_modules_that_are_never_called_is_not_verified(tmp_path):
    made = pair(tmp_path, build=_mamba, target_modules=["dt_proj"])
    with pytest.raises(RefusedError, match=r"that the model never calls do nothing.*layers\.0\.dt_proj"):
        adaptrix.merge(made.adapter, made.base, tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_a_cache_of_states_is_refused(tmp_path):
    made = pair(tmp_path, build=_mamba, target_modules=["in_proj"])
    with (
        adaptrix.attach(_mamba(), {"a": made.adapter}) as session,
        pytest.raises(RefusedError, match="a model whose cache holds states"),
    ):
        session.new_cache()
