"""Adapters of a session as the model of TRL's SFTTrainer, with an SFTTrainer of peft's model as the judge.

TRL is no part of the tests' requirements: `make test-trl` installs it.
"""

import copy

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.attached import VARIANTS, saved
from tests.helpers.double import EXACT, double
from tests.helpers.trainer import settings

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

BASE = "examples/tiny/base"
TEXTS = ["Arrr, matey! Th' sea be calm.", "The old sailor went home.", "A fox", "Once upon a time there was a king."]


@pytest.fixture
def base():
    with double():
        yield AutoModelForCausalLM.from_pretrained(BASE).double()


def train(module, folder, resume=None, **options):
    arguments = trl.SFTConfig(str(folder), **settings(bf16=False, save_strategy="steps", save_steps=2, **options))
    data = datasets.Dataset.from_list([{"text": text} for text in TEXTS * 2])
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    trainer = trl.SFTTrainer(module, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "done"))


def numbers(folder, model):
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder, autocast_adapter_dtype=False)
    return peft.get_peft_model_state_dict(again)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_sft_steps_and_clips_as_with_peft(variant, checkpointing, base, tmp_path):
    options = {"target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1, **VARIANTS[variant]}
    saved(base, tmp_path / "lora", **options)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora", is_trainable=True)
    train(theirs, tmp_path / "judge", gradient_checkpointing=checkpointing)
    with attach(base, {"x": tmp_path / "lora"}) as session, session.training("x") as module:
        train(module, tmp_path / "ours", gradient_checkpointing=checkpointing)
    found, wanted = (numbers(tmp_path / name / "done", base) for name in ("ours", "judge"))
    before = numbers(tmp_path / "lora", base)
    assert found.keys() == wanted.keys()
    for name, number in wanted.items():
        assert (found[name] - number).abs().max() < EXACT, name
        assert not torch.equal(number, before[name]), name


def test_sft_goes_on_from_a_checkpoint(base, tmp_path):
    saved(base, tmp_path / "lora", target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
    for name, resume in (("whole", None), ("parts", tmp_path / "whole" / "checkpoint-2")):
        with attach(copy.deepcopy(base), {"x": tmp_path / "lora"}) as session, session.training("x") as module:
            train(module, tmp_path / name, resume)
    found, wanted = (numbers(tmp_path / name / "done", base) for name in ("parts", "whole"))
    assert all(torch.equal(found[name], number) for name, number in wanted.items())


def test_an_adapter_of_the_head_is_refused_as_sft_never_calls_it(base, tmp_path):
    saved(base, tmp_path / "lora", target_modules=["q_proj", "lm_head"])
    with (
        attach(base, {"x": tmp_path / "lora"}) as session,
        session.training("x") as module,
        pytest.raises(RefusedError) as caught,
    ):
        train(module, tmp_path / "ours")
    assert caught.value.problems[0].code == "module-unsupported"
