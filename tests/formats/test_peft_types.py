"""Types of peft that are not read: one cause each, and advice that works, which is tried with peft itself."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields

import peft
import pytest
import torch
from safetensors.torch import save_file

import adaptrix
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import CONFIG, WEIGHTS, logits
from tests.helpers.peft_types import NOT_MADE, config_of, model_of, save_of

#: of logits: peft cuts singular values by their energy in fp32
CLOSE = 2e-3
KINDS = sorted(str(kind.value) for kind in peft.PeftType)
MADE = [kind for kind in KINDS if kind not in NOT_MADE]
SAVED = [kind for kind in MADE if kind not in ("MULTITASK_PROMPT_TUNING", "POLY")]  # these two answer by task


def converted(kind, model, folder):
    """The logits of the LoRA that peft makes of an adapter, at the rank that loses nothing."""
    peft.save_as_lora(folder, model, rank=1.0)
    return logits(peft.PeftModel.from_pretrained(tiny_model("llama"), folder).eval())


def attempt(advised, model, kind, folder):
    """The logits after the advice was taken, None where peft cannot do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return converted(kind, model, folder) if advised == "save_as_lora" else logits(model.merge_and_unload())
        except (TypeError, ValueError, AttributeError, NotImplementedError):
            return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_is_refused_by_its_name_alone(kind, tmp_path):
    keys = {} if kind == "ADAMSS" else {field.name: None for field in fields(config_of(kind))}
    (tmp_path / CONFIG).write_text(json.dumps(keys | {"peft_type": kind}))
    save_file({"base_model.model.x.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    problems = adaptrix.check(tmp_path).problems
    if problems[0].code == "peft-type":
        (problem,) = problems
        assert kind in problem.found
        assert kind not in NOT_MADE or problem.remedy == "Use it through peft."


@pytest.mark.parametrize("kind", SAVED)
def test_the_advice_for_a_type_works_and_is_the_best_there_is(kind, tmp_path):
    saved = save_of(kind, tmp_path)
    problems = adaptrix.check(saved.folder, saved.base).problems
    if not problems or problems[0].code != "peft-type":
        return  # it is read
    (problem,) = problems
    ways = [way for way in ("save_as_lora", "merge_and_unload") if way in problem.remedy]
    for way in ("save_as_lora", "merge_and_unload"):
        found = attempt(way, model_of(kind), kind, tmp_path / way)
        works = found is not None and torch.allclose(found, saved.logits, atol=CLOSE)
        assert works == (way in ways), way
        if works:
            break  # the better one is advised
