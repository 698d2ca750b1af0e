"""Adapters that forward hooks cannot serve: refused for the true reason, or attached with a warning."""

import json

import pytest
import torch
import transformers

import adaptrix
from adaptrix.errors import RefusedError
from tests.helpers.merge_models import pair


def attached(made):
    model = made.model.unload()
    return model, adaptrix.attach(model, {"x": made.adapter})


def edit(made, **keys):
    file = made.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"arrow_config": {"top_k": 2}}, "conditional", "chooses among adapters token by token"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "variant-unsupported", "its config repeats layers"),
    ],
)
def test_what_a_config_asks_for_and_no_session_does(keys, code, said, tmp_path):
    made = pair(tmp_path, "llama", targets=["q_proj"])
    edit(made, **keys)
    with pytest.raises(RefusedError) as refused:
        attached(made)
    assert code in {problem.code for problem in refused.value.problems}
    assert said in str(refused.value)
    assert "no such module" not in str(refused.value)


def test_warnings_of_reading_reach_whoever_attaches(tmp_path):
    made = pair(tmp_path, "llama", targets=["q_proj"])
    edit(made, modules_to_save=["a_module_of_no_tensors"])
    with pytest.warns(adaptrix.AdaptrixWarning, match="a_module_of_no_tensors") as caught:
        _, session = attached(made)
    session.detach()
    assert {str(warning.filename) for warning in caught} == {__file__}


def test_a_module_that_is_read_and_never_called_is_named(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**sizes, image_size=16, patch_size=8)
    made = pair(tmp_path, build=lambda: transformers.SiglipVisionModel(config), targets=["out_proj"])
    model = made.model.unload()
    with pytest.warns(
        adaptrix.AdaptrixWarning, match="never calls the module: attached, the delta does nothing"
    ) as caught:
        session = adaptrix.attach(model, {"x": made.adapter})
    assert len([warning for warning in caught if "never calls" in str(warning.message)]) == 1
    with session, torch.no_grad():
        session.activate("x")
        model(pixel_values=torch.zeros(1, 3, 16, 16))
