"""Gradient checkpointing on a live model: what is recomputed is under the adapters of its forward pass."""

import threading
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError
from tests.helpers.attached import TARGETS, inputs, saved
from tests.helpers.double import EXACT
from tests.helpers.families import FAMILIES, tiny_model
from tests.helpers.sampling import crossed

pytestmark = pytest.mark.numeric

LLAMA = ["q_proj", "k_proj", "down_proj"]


def ids():
    torch.manual_seed(7)
    return torch.randint(0, 40, (3, 6))


@pytest.fixture
def llama():
    return tiny_model("llama").requires_grad_(False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("pair"), tiny_model("llama")
    saved(model, folder / "a", seed=1, rank=3, target_modules=LLAMA)
    saved(model, folder / "b", seed=2, rank=5, target_modules=["q_proj", "v_proj"])
    return {"a": folder / "a", "b": folder / "b"}


def input_gradient(model, choose, *, embedded, meanwhile=lambda: None, backward=torch.Tensor.backward):
    """The gradient of the embedded input, the forward pass run under ``choose()``."""
    x = embedded.clone().requires_grad_()
    with choose():
        loss = model(inputs_embeds=x, use_cache=False).logits.square().mean()
    meanwhile()
    backward(loss)
    return x.grad


def in_another_thread(loss):
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


CHOICES = {"use": "a", "mix": {"a": 0.7, "b": 0.3}, "rows": ["a", None, "b"], "base": None}


@pytest.mark.parametrize("backward", [torch.Tensor.backward, in_another_thread])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_are_recomputed_under_the_adapters_of_their_forward_pass(reentrant, choice, backward, llama, pair):
    llama.train()
    embedded = torch.randn(3, 5, llama.config.hidden_size)
    with attach(llama, pair) as session:

        def choose():
            return session.route(CHOICES[choice]) if choice == "rows" else session.use(CHOICES[choice])

        wanted = input_gradient(llama, choose, embedded=embedded)
        llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
        other = "b" if choice != "base" else "a"
        got = input_gradient(
            llama, choose, embedded=embedded, meanwhile=lambda: session.activate(other), backward=backward
        )
        with session.use(other):
            wrong = input_gradient(llama, lambda: session.use(other), embedded=embedded)
    assert torch.equal(got, wanted)
    assert not torch.allclose(wrong, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_one_backward_pass_of_several_forward_passes(reentrant, llama, pair, in_double):
    """The same input, so that nothing but the choice tells the passes apart."""
    llama.double().train()
    embedded = torch.randn(3, 5, llama.config.hidden_size, dtype=torch.float64)

    def gradient(session):
        x = embedded.clone().requires_grad_()
        total = 0
        for name in ("a", None, "b", "a"):
            session.activate(name)
            total = total + llama(inputs_embeds=x, use_cache=False).logits.square().mean() * (2 if name else 5)
        session.activate("b")
        total.backward()
        return x.grad

    with attach(llama, pair) as session:
        wanted = gradient(session)
        llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert (gradient(session) - wanted).abs().max() < EXACT * wanted.abs().max()


@pytest.mark.parametrize("how", ["use", "activate"])
def test_two_sessions_are_recomputed_each_under_its_own(how, llama, pair):
    llama.train()
    embedded = torch.randn(3, 5, llama.config.hidden_size)
    with attach(llama, {"a": pair["a"]}) as one, attach(llama, {"b": pair["b"]}) as other:

        def choose():
            one.activate("a")
            other.activate("b")
            return other.use("b") if how == "use" else nullcontext()

        def meanwhile():
            one.activate(None)
            other.activate(None)

        wanted = input_gradient(llama, choose, embedded=embedded)
        llama.gradient_checkpointing_enable()
        got = input_gradient(llama, choose, embedded=embedded, meanwhile=meanwhile)
    assert torch.equal(got, wanted)


def test_what_is_saved_may_lie_elsewhere_meanwhile(llama, pair):
    """Checkpoints offloaded by hooks of the user's own."""
    llama.train()
    embedded = torch.randn(3, 5, llama.config.hidden_size)
    stored = []

    def pack(tensor):
        stored.append(tensor.clone())
        return len(stored) - 1

    with attach(llama, pair) as session:
        wanted = input_gradient(llama, lambda: session.use("a"), embedded=embedded)
        llama.gradient_checkpointing_enable()
        with torch.autograd.graph.saved_tensors_hooks(pack, stored.__getitem__):
            x = embedded.clone().requires_grad_()
            with session.use("a"):
                loss = llama(inputs_embeds=x, use_cache=False).logits.square().mean()
        loss.backward()
    assert len(stored) > 3
    assert torch.equal(x.grad, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_model_is_refused(reentrant, llama, pair):
    llama.train()
    x = torch.randn(3, 5, llama.config.hidden_size, requires_grad=True)
    with attach(llama, pair) as session, session.use("a"):
        out = checkpoint(lambda x: llama(inputs_embeds=x).logits, x, use_reentrant=reentrant)
        with pytest.raises(RefusedError, match="gradient_checkpointing_enable"):
            out.sum().backward()
        hidden = llama.model(inputs_embeds=x, use_cache=False).last_hidden_state
        hidden.sum().backward()  # without checkpoints any part may be called
        llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
        hidden = llama.model(inputs_embeds=x, use_cache=False).last_hidden_state
        with pytest.raises(RefusedError, match="Call the model itself"):
            hidden.sum().backward()


def test_detaching_before_the_backward_pass_is_refused(llama, pair):
    llama.train()
    llama.gradient_checkpointing_enable()
    x = torch.randn(3, 5, llama.config.hidden_size, requires_grad=True)
    with attach(llama, pair) as session, session.use("a"):
        loss = llama(inputs_embeds=x, use_cache=False).logits.sum()
    with pytest.raises(RefusedError, match=r"Detach after loss.backward"):
        loss.backward()


def test_what_lies_in_slots_is_not_recomputed(llama, pair):
    llama.train()
    with attach(llama, pair, slots=1) as session, session.use("a"):
        wanted = llama(input_ids=ids()).logits
        llama.gradient_checkpointing_enable()
        with pytest.raises(RefusedError, match="Attach without slots"):
            llama(input_ids=ids())
        llama.gradient_checkpointing_disable()
        assert torch.equal(llama(input_ids=ids()).logits, wanted)


def gradients(loss, leaves):
    """As ``backward`` leaves them, which is the one way of reentrant checkpoints; None where none arrived."""
    loss.backward()
    found = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


@pytest.mark.parametrize(("family", "reentrant"), crossed(sorted(FAMILIES), [True, False]))
def test_every_family_is_recomputed_under_the_adapter_of_its_forward_pass(family, reentrant, tmp_path, in_double):
    model = tiny_model(family).double()
    model.set_experts_implementation("eager")  # torch's grouped product knows no double
    for seed, name in enumerate("ab"):
        saved(model, tmp_path / name, seed=seed, target_modules=TARGETS.get(family, ["q_proj", "v_proj", "o_proj"]))
    with attach(model, {name: tmp_path / name for name in "ab"}) as session:
        leaves, found = session.parameters("a"), []
        model.train()
        for checkpoints in (False, True):
            if checkpoints:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            torch.manual_seed(3)  # of the model's own dropout
            with session.use("a"):
                loss = model(**inputs(model)).logits.square().mean()
            with session.use("b"):
                found.append(gradients(loss, leaves))
    assert any(gradient is not None for gradient in found[0])
    for wanted, got in zip(*found, strict=True):
        assert wanted is got is None or (got - wanted).abs().max() < EXACT
