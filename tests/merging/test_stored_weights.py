"""Weights that ``target_parameters`` names: peft's factors describe them as they are stored, [in, out] in a Conv1D."""

import pytest
import transformers
from peft import PeftModel

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair
from tests.helpers.other_families import TEXT, filled, of, openai_gpt
from tests.merging.test_model_class import assert_merged_as_peft_does


def _gpt2(inner=32):
    keys = {"n_embd": 32, "n_inner": inner, "n_layer": 2, "n_head": 4, "n_positions": 64, "tie_word_embeddings": False}
    return of("GPT2LMHeadModel", vocab_size=96, bos_token_id=1, eos_token_id=2, **keys)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        pytest.param(_gpt2, "mlp.c_fc.weight", id="square"),
        pytest.param(lambda: _gpt2(48), "mlp.c_fc.weight", id="oblong"),
        pytest.param(_gpt2, "wte.weight", id="embedding"),
        pytest.param(openai_gpt, "attn.c_proj.weight", id="unknown-family-square"),
        pytest.param(openai_gpt, "c_attn.weight", id="unknown-family"),
    ],
)
def test_merged_as_peft_does(build, name, tmp_path):
    made = pair(tmp_path, build=build, target_modules=[], target_parameters=[name])
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")


def test_an_attached_one_is_written_as_modules(tmp_path):
    made = pair(tmp_path, build=_gpt2, target_modules=[], target_parameters=["mlp.c_fc.weight"])
    model = _gpt2()
    with adaptrix.attach(model, {"a": str(made.adapter)}) as session:
        adaptrix.convert(session.adapter("a"), tmp_path / "written", to="peft")
    written = PeftModel.from_pretrained(model, tmp_path / "written").merge_and_unload().state_dict()
    for name, tensor in made.peft_merged().items():
        assert written[name].sub(tensor).abs().max() < 1e-5, name


def test_two_spellings_of_one_weight_are_not_added(tmp_path):
    stored = pair(tmp_path / "a", build=_gpt2, target_modules=[], target_parameters=["mlp.c_fc.weight"])
    module = pair(tmp_path / "b", build=_gpt2, target_modules=["c_fc"], fan_in_fan_out=True)
    with pytest.raises(RefusedError, match="changes the parameter as it is stored"):
        adaptrix.combine([stored.adapter, module.adapter], out=tmp_path / "sum")
    with pytest.raises(RefusedError, match="changes the parameter as it is stored"):
        adaptrix.diff(stored.adapter, module.adapter)


def _llama4():
    keys = {"num_local_experts": 2, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "intermediate_size": 32}
    config = transformers.Llama4TextConfig(**{**TEXT, **keys, "intermediate_size_mlp": 48, "layer_types": None})
    return filled(transformers.Llama4ForCausalLM(config))


def test_square_stacks_that_no_class_says_the_axes_of_are_merged_as_peft_describes_them(tmp_path):
    made = pair(tmp_path, build=_llama4, target_modules=[], target_parameters=["feed_forward.experts.down_proj"])
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")
