"""Optimisers that step a model with a session, and nothing of an adapter in it."""

import gc
import warnings
import weakref

import pytest
import torch
from transformers import Trainer

from adaptrix.attaching import attach
from adaptrix.errors import AdaptrixWarning, UsageError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.trainer import arguments, rows
from tests.helpers.training import loss_of

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("uncollected")]


@pytest.fixture
def llama():
    return tiny_model("llama")


@pytest.fixture
def lora(llama, tmp_path):
    saved(llama, tmp_path / "lora", target_modules=["q_proj"])
    return tmp_path / "lora"


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def said(caught):
    return [str(one.message) for one in caught if issubclass(one.category, AdaptrixWarning)]


@pytest.mark.parametrize("frozen_before", [True, False])
def test_a_trainer_of_the_frozen_base_is_refused_at_its_first_step(frozen_before, llama, lora, tmp_path):
    llama.requires_grad_(not frozen_before)
    before = weights(llama)
    with attach(llama, {"x": lora}) as session:
        leaves = [leaf.clone() for leaf in session.parameters("x")]
        session.activate("x")
        with pytest.raises(UsageError, match=r"session\.training\(name\)") as caught:
            Trainer(llama, arguments(tmp_path), train_dataset=rows()).train()
        assert all(torch.equal(one, other) for one, other in zip(leaves, session.parameters("x"), strict=True))
    assert caught.value.problems[0].code == "training"
    assert unchanged(llama, before)


@pytest.mark.parametrize("alone", [True, False])
def test_an_optimiser_of_the_frozen_base_is_refused_unless_it_trains_something_else(alone, llama, lora):
    own = torch.nn.Parameter(torch.ones(()))
    with attach(llama, {"x": lora}) as session:
        session.parameters("x")
        optimiser = torch.optim.SGD([*llama.parameters()] if alone else [*llama.parameters(), own], lr=0.1)
        with session.use("x"):
            (loss_of(llama) * own).backward()
        if alone:
            with pytest.raises(UsageError) as caught:
                optimiser.step()
            assert caught.value.problems[0].code == "training"
        else:
            optimiser.step()
            assert own.item() != 1


def test_factors_that_are_given_freeze_the_base_as_well(llama):
    A, B = torch.ones(1, 2, 24, requires_grad=True), torch.zeros(1, 60, 2, requires_grad=True)
    with attach(llama, {}) as session, session.given({"model.layers.0.self_attn.q_proj": (A, B)}):
        loss_of(llama).backward()
        with pytest.raises(UsageError):
            torch.optim.SGD(llama.parameters(), lr=0.1).step()
        torch.optim.SGD([A, B], lr=0.1).step()
    assert B.any()


def test_a_trainer_of_the_base_with_an_optimiser_of_leaves_is_told_that_it_clips_nothing(llama, lora, tmp_path):
    with attach(llama, {"x": lora}) as session, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # the second one finds a base that accelerate has prepared
            optimiser = torch.optim.AdamW(session.parameters("x"), lr=1e-3)
            with session.use("x"):
                Trainer(llama, arguments(tmp_path), train_dataset=rows(), optimizers=(optimiser, None)).train()
    (one,) = said(caught)
    assert "clips, saves and resumes nothing" in one


def test_a_base_that_is_trained_under_adapters_is_told_once(llama, lora, tmp_path):
    with attach(llama, {"x": lora}) as session, session.use("x"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(llama, arguments(tmp_path), train_dataset=rows()).train()
        Trainer(llama, arguments(tmp_path), train_dataset=rows()).train()
    (one,) = said(caught)
    assert "no adapter is in training" in one


def test_who_trains_an_adapter_or_another_model_hears_nothing(llama, lora, tmp_path):
    other = tiny_model("llama")
    with attach(llama, {"x": lora}) as session, warnings.catch_warnings():
        warnings.simplefilter("error", AdaptrixWarning)
        loss_of(other).backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        leaves = session.parameters("x")
        with session.use("x"):
            loss_of(llama).backward()
        torch.optim.SGD(leaves, lr=0.1).step()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        with session.training("x") as module:
            Trainer(module, arguments(tmp_path), train_dataset=rows()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdaptrixWarning)
        llama.zero_grad()
        loss_of(llama).backward()
        torch.optim.SGD(llama.parameters(), lr=0.1).step()  # the session is over


def test_a_session_that_is_forgotten_keeps_no_model_alive(lora):
    model = tiny_model("llama")
    session, found = attach(model, {"x": lora}), weakref.ref(model)
    session.parameters("x")
    del session, model
    gc.collect()
    assert found() is None
    own = torch.nn.Parameter(torch.ones(()))
    own.backward()
    torch.optim.SGD([own], lr=0.1).step()
