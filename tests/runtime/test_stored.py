"""Weights that are stored ``[in, out]``, and configs that say so, or say it wrongly. peft is the judge."""

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.attached import TOLERANCE, logits, saved
from tests.helpers.families import tiny_model
from tests.helpers.other_families import gpt_neo, openai_gpt
from tests.helpers.peft_models import rewrite


def near(found, wanted):
    return (found - wanted).abs().max() < TOLERANCE


def gpt2():
    return tiny_model("gpt2")


STORED = [
    (gpt2, "attn.c_proj.weight"),
    (gpt2, "attn.c_attn.weight"),
    (gpt2, "wte.weight"),
    (openai_gpt, "attn.c_proj.weight"),
    (openai_gpt, "attn.c_attn.weight"),
    (openai_gpt, "tokens_embed.weight"),
]


@pytest.mark.parametrize(("build", "weight"), STORED)
def test_weights_that_a_config_names_as_parameters_get_the_change_as_they_are_stored(build, weight, tmp_path):
    model = build()
    untied(model)
    adapted = saved(model, tmp_path, target_modules=[], target_parameters=[weight])
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(adapted))
    assert not near(logits(model), logits(adapted))


def untied(model):
    """Gives the head a weight of its own: peft refuses to say which of two is meant."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


@pytest.mark.parametrize("build", [openai_gpt, gpt_neo])
@pytest.mark.parametrize("said", [True, False])
def test_fan_in_fan_out_that_lies_changes_nothing(build, said, tmp_path):
    """The module's class says how its weight is stored; these models are square in places."""
    model = build()
    targets = ["c_proj", "c_attn"] if build is openai_gpt else ["q_proj", "out_proj", "c_fc"]
    adapted = saved(model, tmp_path, target_modules=targets)
    rewrite(tmp_path, fan_in_fan_out=said)
    with attach(model, {"x": tmp_path}) as session, session.use("x"):
        assert near(logits(model), logits(adapted))


def test_a_module_of_another_size_is_refused_before_it_runs(tmp_path):
    saved(openai_gpt(), tmp_path, target_modules=["c_attn"])
    rewrite(tmp_path, lambda tensors: {key: one[:, :-1] if "lora_A" in key else one for key, one in tensors.items()})
    with pytest.raises(RefusedError, match="as the module has it"):
        attach(openai_gpt(), {"x": tmp_path})
