"""Adapters of a session as the model of transformers' Trainer, with a Trainer of peft's model as the judge."""

import copy
import inspect
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import peft
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

import adaptrix
from adaptrix.attaching import attach
from adaptrix.base.svd import SvdCache
from adaptrix.errors import RefusedError, UsageError
from adaptrix.runtime import adapter_module
from tests.helpers.attached import TARGETS, VARIANTS, logits, saved
from tests.helpers.double import EXACT, double
from tests.helpers.families import tiny_model
from tests.helpers.peft_models import rewrite
from tests.helpers.spectral_experts import expert
from tests.helpers.trainer import StopAt, arguments, rows, settings
from tests.helpers.training import loss_of

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("uncollected")]

LLAMA = ["q_proj", "k_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _in_double(request):
    """Everything but what is about another dtype is compared in double."""
    with nullcontext() if "single" in request.fixturenames else double():
        yield


@pytest.fixture
def single():
    """The dtypes are what the test is about."""


@pytest.fixture
def llama():
    return tiny_model("llama").double()


@pytest.fixture
def lora(llama, tmp_path):
    saved(llama, tmp_path / "lora", target_modules=LLAMA, lora_dropout=0.1)
    return tmp_path / "lora"


def train(module, folder, *, resume=None, stop=None, **options):
    trainer = Trainer(module, arguments(folder, **options), train_dataset=rows(), eval_dataset=rows(4))
    if stop is not None:
        trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def numbers(session):
    return {name: leaf.detach().clone() for name, leaf in session.named_parameters("x").items()}


def trained(model, adapter, folder, **options):
    """The leaves after a training in a session of its own, and the Trainer's log."""
    with attach(copy.deepcopy(model), {"x": adapter}) as session:
        with session.training("x") as module:
            trainer = train(module, folder, **options)
        return numbers(session), trainer.state.log_history


def assert_equal(found, wanted, bound=0.0):
    assert found.keys() == wanted.keys()
    for name, number in wanted.items():
        assert (found[name] - number).abs().max() <= bound, name


def peft_numbers(folder, model):
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder, autocast_adapter_dtype=False).eval()
    return peft.get_peft_model_state_dict(again), logits(again)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("family", "variant", "accumulated"),
    [("llama", "lora", 1), ("llama", "dora", 2), ("gpt2", "bias", 1), ("gpt2", "rslora", 2)],
)
def test_trainer_steps_and_clips_as_it_does_with_peft(family, variant, accumulated, tmp_path):
    model = tiny_model(family).double()
    options = {"target_modules": TARGETS.get(family, LLAMA), "lora_dropout": 0.2, **VARIANTS[variant]}
    saved(model, tmp_path / "lora", **options)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora", is_trainable=True)
    judge = train(theirs, tmp_path / "judge", gradient_accumulation_steps=accumulated)
    with attach(model, {"x": tmp_path / "lora"}) as session:
        before = numbers(session)
        with session.training("x") as module:
            trainer = train(module, tmp_path / "ours", gradient_accumulation_steps=accumulated)
            module.save_pretrained(tmp_path / "done")
            module.eval()
            answer = logits(model)
        assert all(not torch.equal(number, before[name]) for name, number in numbers(session).items())
    norms = [[line["grad_norm"] for line in one.state.log_history if "grad_norm" in line] for one in (trainer, judge)]
    assert norms[0] == pytest.approx(norms[1], abs=EXACT)
    assert min(norms[0]) > 0.02  # twice what clipping leaves of it
    found, again = peft_numbers(tmp_path / "done", model)
    assert_equal(found, peft.get_peft_model_state_dict(theirs), EXACT)
    assert (again - answer).abs().max() < EXACT


def fused(model, folder):
    """A legacy MergedLinear, whose parts have leaves of their own and no PEFT folder of today."""

    def merged(state):
        for key, tensor in state.items():
            if "lora_B" in key:
                state[key] = torch.randn(2 * len(tensor) // 3, 2, 1, dtype=tensor.dtype) * 0.2

    saved(model, folder, target_modules=["c_attn"], rank=4)
    rewrite(folder, merged, r=2, enable_lora=[True, False, True], fan_in_fan_out=True)
    return folder


def planned(model, folder):
    """An injection file whose plan leaves a layer out and replaces deltas of others."""
    saved(model, folder, target_modules=LLAMA)
    return adaptrix.convert(folder, folder.with_suffix(".safetensors"), layers="0,2", redistribute="nearest")


def spectral(model, folder):
    return expert(model, ["k_proj", "down_proj"], SvdCache(folder))


ADAPTERS = {
    "lora": lambda model, folder: saved(model, folder, target_modules=LLAMA, lora_dropout=0.3) and folder,
    "dora and tied": lambda model, folder: (
        saved(model, folder, target_modules=["q_proj", "lm_head"], use_dora=True) and folder
    ),
    "plan": planned,
    "spectral": spectral,
    "fused": fused,
}
#: what PEFT cannot hold as it is trained is saved as Trainer saves any module: its own numbers
WEIGHTS = {"spectral": "model.safetensors", "fused": "model.safetensors"}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_training_that_was_stopped_goes_on_to_the_same_numbers(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))
    model = tiny_model("gpt2" if kind == "fused" else "llama").double()
    adapter = ADAPTERS[kind](model, tmp_path / "adapter")
    each = {"save_strategy": "steps", "save_steps": 2}
    wanted, log = trained(model, adapter, tmp_path / "whole", **each)
    stopped, _ = trained(model, adapter, tmp_path / "parts", stop=2, **each)
    resumed, again = trained(model, adapter, tmp_path / "parts", resume=True, **each)
    weights = WEIGHTS.get(kind, "adapter_model.safetensors")
    assert {file.name for file in (tmp_path / "parts" / "checkpoint-2").glob("*.safetensors")} == {weights}
    assert_equal(resumed, wanted)
    assert any(not torch.equal(stopped[name], number) for name, number in wanted.items())
    assert [line["loss"] for line in again if "loss" in line] == [line["loss"] for line in log if "loss" in line]


def test_a_plan_with_gains_is_gone_on_with(llama, lora, tmp_path):
    adapter = adaptrix.load(adaptrix.convert(lora, tmp_path / "x.safetensors"))
    assert adapter.recorded is not None
    gained = replace(adapter, recorded=replace(adapter.recorded, gains={0: 0.7, 2: 1.5}))
    with attach(llama, {"x": gained}) as session, session.training("x") as module:
        before, answer = numbers(session), logits(llama)
        module.save_pretrained(tmp_path / "out")
        with torch.no_grad():
            for leaf in module.parameters():
                leaf.add_(1)
        module.load_adapter(tmp_path / "out", "x")
        assert_equal(numbers(session), before)
    assert (peft_numbers(tmp_path / "out", llama)[1] - answer).abs().max() < EXACT


def test_a_loop_of_accelerate_goes_on_from_its_state(llama, lora, tmp_path):
    accelerator = Accelerator(cpu=True)
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        model, optimiser = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=1e-2))

        def step():
            accelerator.backward(loss_of(model))
            assert accelerator.clip_grad_norm_(model.parameters(), 0.01) > 0.02
            optimiser.step()
            optimiser.zero_grad()
            return numbers(session)

        step()
        accelerator.save_state(tmp_path / "state")
        wanted = step()
        accelerator.load_state(tmp_path / "state")
        assert_equal(step(), wanted)


def test_without_peft_checkpoints_hold_the_leaves(llama, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_module, "_peft_class", lambda: None)
    each = {"save_strategy": "steps", "save_steps": 2}
    wanted, _ = trained(llama, lora, tmp_path / "whole", **each)
    trained(llama, lora, tmp_path / "parts", stop=2, **each)
    resumed, log = trained(llama, lora, tmp_path / "parts", resume=True, eval_strategy="steps", eval_steps=1, **each)
    assert_equal(resumed, wanted)
    assert any("eval_loss" in line for line in log)


def test_the_best_checkpoint_is_loaded_at_the_end(llama, lora, tmp_path):
    each = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        trainer = train(module, tmp_path / "runs", **each, **worst)
        best = trainer.state.best_model_checkpoint
        assert best != str(tmp_path / "runs" / "checkpoint-3")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=EXACT)
        answer = logits(llama)
    assert (peft_numbers(best, llama)[1] - answer).abs().max() < EXACT


@pytest.mark.numeric
def test_a_checkpoint_of_trainer_and_peft_is_gone_on_with(llama, lora, tmp_path):
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(llama), lora, is_trainable=True)
    train(theirs, tmp_path / "runs", stop=2, save_strategy="steps", save_steps=2)
    resumed, _ = trained(llama, lora, tmp_path / "runs", resume=True)
    wanted = peft.PeftModel.from_pretrained(copy.deepcopy(llama), lora, is_trainable=True)
    train(wanted, tmp_path / "whole")
    found = sorted(number.norm().item() for number in resumed.values())
    norms = sorted(number.norm().item() for number in peft.get_peft_model_state_dict(wanted).values())
    assert found == pytest.approx(norms, abs=EXACT)


def test_save_model_puts_a_peft_folder_among_other_files(llama, lora, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("kept")
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        trainer = train(module, tmp_path / "runs", save_strategy="steps", save_steps=2)
        trainer.save_model()
        trainer.save_model()
        module.eval()
        answer = logits(llama)
    assert (tmp_path / "runs" / "notes.txt").read_text() == "kept"
    assert not [file for file in (tmp_path / "runs").iterdir() if file.name.startswith(".")]
    assert (peft_numbers(tmp_path / "runs", llama)[1] - answer).abs().max() < EXACT
    assert adaptrix.check(tmp_path / "runs" / "checkpoint-2").ok


def test_generation_and_evaluation_are_the_adapters(tmp_path):
    model = tiny_model("t5").double()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.pad_token_id = 0
    saved(model, tmp_path / "lora", target_modules=["q", "v", "wo"])
    seen = []

    def metrics(prediction):
        seen.append(torch.from_numpy(prediction.predictions))
        return {}

    own = settings(predict_with_generate=True, generation_max_length=6, generation_num_beams=1)
    judge = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora")
    with attach(model, {"x": tmp_path / "lora"}) as session, session.training("x") as module:
        for one in (module, judge, model):
            given = Seq2SeqTrainingArguments(str(tmp_path / "runs"), **own)
            with session.use(None):  # the module keeps to its adapter, the model has none here
                Seq2SeqTrainer(one, given, eval_dataset=rows(4), compute_metrics=metrics).evaluate()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_module_has_the_leaves_alone_and_is_else_the_model(llama, lora):
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        assert {id(p) for p in module.parameters()} == {id(p) for p in session.parameters("x")}
        named, state = dict(module.named_parameters()), module.state_dict()
        assert named.keys() == state.keys()
        assert all(torch.equal(named[name], state[name]) for name in named)
        assert module.config is llama.config
        assert (module.device, module.dtype) == (llama.device, llama.dtype)
        assert inspect.signature(module.forward) == inspect.signature(llama.forward)
        module.train()
        assert llama.training
        assert not module.eval().training
        assert not llama.training
        module.gradient_checkpointing_enable()
        assert llama.is_gradient_checkpointing
        changed = {name: tensor + 1 for name, tensor in state.items()}
        assert not module.load_state_dict(changed).missing_keys
        assert all(torch.equal(p, changed[name]) for name, p in module.named_parameters())
        for name in ("push_to_hub", "add_adapter", "set_adapter", "delete_adapter"):
            assert not hasattr(module, name)


@pytest.mark.parametrize("flags", [{"bf16": True}, {"bf16_full_eval": True}, {"gradient_checkpointing": True}])
def test_leaves_stay_fp32_and_learn_under_every_flag(flags, single, tmp_path):
    model = tiny_model("llama")
    saved(model, tmp_path / "lora", target_modules=LLAMA)
    plain, log = trained(model, tmp_path / "lora", tmp_path / "plain")
    with attach(model, {"x": tmp_path / "lora"}) as session, session.training("x") as module:
        trainer = train(module, tmp_path / "runs", **flags)
        trainer.evaluate()
        found = numbers(session)
        trainer.save_model()
    assert {number.dtype for number in found.values()} == {torch.float32}
    written = safetensors.torch.load_file(tmp_path / "runs" / "adapter_model.safetensors")
    assert {number.dtype for number in written.values()} == {torch.float32}
    losses = [[line["loss"] for line in one if "loss" in line] for one in (trainer.state.log_history, log)]
    assert losses[0] == pytest.approx(losses[1], rel=torch.finfo(torch.bfloat16).eps)
    assert all((number - plain[name]).abs().max() < 2 * 3 * 1e-2 for name, number in found.items())


def test_a_second_training_in_the_session_is_clipped_under_autocast_as_well(single, tmp_path):
    """Accelerate marks a model that it has prepared, and passes over it: the mark of the base is not the module's."""
    model = tiny_model("llama")
    saved(model, tmp_path / "lora", target_modules=LLAMA)
    model._is_accelerate_prepared = True
    with attach(model, {"x": tmp_path / "lora"}) as session, session.training("x") as module:
        dtypes = []
        model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, x, y: dtypes.append(y.dtype))
        train(module, tmp_path / "runs", bf16=True)
    assert set(dtypes) == {torch.bfloat16}


REFUSALS = {
    "another adapter": (lambda module, folder: module.load_adapter(folder / "other", "x"), "model-changed"),
    "another alpha": (lambda module, folder: module.load_adapter(folder / "other", "x"), "model-changed"),
    "another name": (lambda module, folder: module.load_adapter(folder / "lora", "y"), "option"),
    "no checkpoint": (lambda module, folder: module.load_adapter(folder / "none", "x"), "file-missing"),
    "device": (lambda module, folder: module.to("meta"), "model-changed"),
    "replicas": (lambda module, folder: module._replicate_for_data_parallel(), "model-unsupported"),
    "gathered": (lambda module, folder: module.save_pretrained(folder / "out", state_dict={}), "option"),
    "pickle": (lambda module, folder: module.save_pretrained(folder / "out", safe_serialization=False), "option"),
    "no folder": (lambda module, folder: module.save_pretrained(folder / "file"), "output-invalid"),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_it_cannot_do_is_refused_and_changes_nothing(how, llama, lora, tmp_path):
    if how == "another adapter":
        saved(llama, tmp_path / "other", target_modules=["q_proj", "o_proj"], rank=4)
    if how == "another alpha":
        saved(llama, tmp_path / "other", target_modules=LLAMA)
        rewrite(tmp_path / "other", lora_alpha=7)
    (tmp_path / "file").write_text("a file")
    act, code = REFUSALS[how]
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        before, answer = numbers(session), logits(llama)
        with pytest.raises((RefusedError, UsageError)) as caught:
            act(module, tmp_path)
        assert {problem.code for problem in caught.value.problems} == {code}
        assert_equal(numbers(session), before)
        assert torch.equal(logits(llama), answer)
    assert not (tmp_path / "out").exists()


def test_spectral_deltas_are_no_peft_folder(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "cache"))
    with (
        attach(llama, {"x": spectral(llama, tmp_path / "svd")}) as session,
        session.training("x") as module,
        pytest.raises(UsageError) as caught,
    ):
        module.save_pretrained(tmp_path / "out")
    assert {problem.code for problem in caught.value.problems} == {"format-loss"}
    assert not list((tmp_path / "out").iterdir())


def test_a_save_that_fails_leaves_the_last_one(llama, lora, tmp_path, monkeypatch):
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        module.save_pretrained(tmp_path / "out")
        before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        with torch.no_grad():
            next(module.parameters()).add_(1)
        monkeypatch.setattr("adaptrix.pipeline._read_back", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
        with pytest.raises(RefusedError) as caught:
            module.save_pretrained(tmp_path / "out")
    assert {problem.code for problem in caught.value.problems} == {"disk-full"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("ended", ["block", "session"])
def test_after_its_block_it_runs_no_more_and_the_model_is_free(ended, llama, lora, tmp_path):
    base = logits(llama)
    with attach(llama, {"x": lora}) as session:
        with session.training("x") as module:
            assert not torch.equal(logits(llama), base)
            with pytest.raises(UsageError):  # it is in use
                session.unload("x")
            if ended == "session":
                session.detach()
        with pytest.raises(UsageError) as caught:
            module(input_ids=torch.tensor([[1, 2]]))
        assert torch.equal(logits(llama), base)
    assert caught.value.problems[0].code == "session-state"


def test_parameters_that_were_replaced_are_refused_as_they_would_be_stepped_in_vain(llama, lora):
    """As FSDP replaces them by slices."""
    with attach(llama, {"x": lora}) as session, session.training("x") as module:
        module.load_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()}, assign=True)
        with pytest.raises(RefusedError) as caught:
            module(input_ids=torch.tensor([[1, 2]]))
    assert caught.value.problems[0].code == "model-changed"


def test_a_head_that_is_never_called_is_refused(llama, tmp_path):
    """Fused losses multiply by the head's weight themselves, and its adapter would be left as it is."""
    saved(llama, tmp_path / "head", target_modules=["q_proj", "lm_head"])

    def without_head(input_ids, labels=None, **_):
        states = llama.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=states @ llama.lm_head.weight.T)

    with attach(llama, {"x": tmp_path / "head"}) as session, session.training("x") as module:
        module(input_ids=torch.tensor([[1, 2]]))
        llama.forward = without_head
        with pytest.raises(RefusedError) as caught:
            module(input_ids=torch.tensor([[1, 2]]))
    assert caught.value.problems[0].code == "module-unsupported"
