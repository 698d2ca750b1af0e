"""Families without a file in the registry: orientation, ties and names of files are those of the model class."""

import json
import warnings

import pytest
import torch

from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair
from tests.helpers.other_families import (
    TEXT,
    deepseek,
    glm,
    gpt_neo,
    gpt_oss,
    of,
    olmoe,
    openai_gpt,
    paligemma,
    qwen2_vl,
)

_EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def assert_merged_as_peft_does(made, out):
    """Every parameter of the merged model, as transformers reads it, is that of peft's own merge."""
    kind = type(made.model.get_base_model())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = made.model.merge_and_unload().state_dict()
        found = kind.from_pretrained(out, dtype=torch.float32).state_dict()
        plain = kind.from_pretrained(made.base, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-6), name
    assert any(not torch.equal(found[name], plain[name]) for name in wanted)


@pytest.mark.parametrize(
    ("build", "keys"),
    [
        pytest.param(qwen2_vl, {"target_modules": r".*language_model.*(q_proj|v_proj)"}, id="files-of-other-names"),
        pytest.param(lambda: gpt_oss(), {"target_modules": [], "target_parameters": _EXPERTS}, id="experts-in-out"),
        pytest.param(
            lambda: gpt_oss(intermediate_size=32),
            {"target_modules": [], "target_parameters": _EXPERTS[1:]},
            id="experts-in-out-square",
        ),
        pytest.param(
            deepseek, {"target_modules": ["o_proj"], "target_parameters": _EXPERTS}, id="files-of-single-experts"
        ),
        pytest.param(glm, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}, id="glm"),
        pytest.param(olmoe, {"target_modules": ["q_proj"], "target_parameters": _EXPERTS}, id="olmoe"),
        pytest.param(
            gpt_neo, {"target_modules": ["out_proj", "c_fc"], "fan_in_fan_out": True}, id="linear-said-conv1d"
        ),
        pytest.param(
            openai_gpt, {"target_modules": ["c_proj", "c_fc"], "fan_in_fan_out": False}, id="conv1d-said-linear"
        ),
        pytest.param(paligemma, {"target_modules": ["position_embedding"]}, id="square-embedding-of-a-tower"),
    ],
)
def test_orientation_and_files(build, keys, tmp_path):
    made = pair(tmp_path, build=build, **keys)
    config = made.adapter / "adapter_config.json"
    if "fan_in_fan_out" in keys:  # peft corrects it while it saves
        config.write_text(json.dumps(json.loads(config.read_text()) | {"fan_in_fan_out": keys["fan_in_fan_out"]}))
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")


def test_a_stack_stored_in_out_was_never_written_the_other_way(tmp_path):
    """What peft changed in 0.19 was for stacks stored [out, in]."""
    made = pair(tmp_path, build=gpt_oss, target_modules=[], target_parameters=_EXPERTS)
    file = made.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_version": "0.17.1"}))
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")


_TIED = {
    "smollm3": lambda: of("SmolLM3ForCausalLM", **TEXT, tie_word_embeddings=True),
    "starcoder2": lambda: of("Starcoder2ForCausalLM", **TEXT),
    "lfm2": lambda: of("Lfm2ForCausalLM", **TEXT, layer_types=["conv", "full_attention"]),
    "gpt_neo": gpt_neo,
}


@pytest.mark.parametrize("family", _TIED)
@pytest.mark.parametrize("half", ["embedding", "head"])
def test_half_of_a_tie_is_refused_as_such(family, half, tmp_path):
    model = _TIED[family]()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    modules = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    name = next(path for path, module in model.named_modules() if module is modules[half])
    made = pair(tmp_path, build=lambda: model, targets=[name.rpartition(".")[2]])
    with pytest.raises(RefusedError) as refused:
        made.merge(tmp_path / "out")
    assert {problem.code for problem in refused.value.problems} == {"tied"}
    assert "merged, the change would be to all of them" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_head_that_is_not_tied_is_merged(tmp_path):
    model = of("SmolLM3ForCausalLM", **TEXT, tie_word_embeddings=False)
    made = pair(tmp_path, build=lambda: model, targets=["embed_tokens", "lm_head"])
    made.merge(tmp_path / "out")
    assert_merged_as_peft_does(made, tmp_path / "out")
