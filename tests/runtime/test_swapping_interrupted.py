"""A swap that breaks off, wherever it is, has not happened; and an interrupted pass leaves nothing chosen."""

import asyncio
import threading

import pytest
import torch

from adaptrix.attaching import attach
from tests.helpers.sampling import crossed
from tests.helpers.swapping import apart, filled, on_layers, placed, prompt, same, state, tiny, upper

ERRORS = [RuntimeError, KeyboardInterrupt, asyncio.CancelledError]


def raiser(error):
    def hook(*_):
        raise error

    return hook


@torch.no_grad()
@pytest.mark.parametrize(("family", "first", "error"), crossed(["llama", "gemma2", "gpt2"], [0, 1], ERRORS))
def test_an_error_in_any_layer_leaves_all_as_it_was(family, first, error, tmp_path):
    """From layer 0 on the tokens are read again, from layer 1 on hidden states are."""
    model = tiny(family)
    given = prompt(padded=True)
    layers = model.get_decoder().h if family == "gpt2" else model.get_decoder().layers
    with attach(model, upper(family, tmp_path, model, first)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**placed(given), past_key_values=cache, use_cache=True)
        before = state(session, cache)
        for layer in layers[first:]:
            handle = layer.register_forward_hook(raiser(error))
            with pytest.raises(error):
                session.swap("b", cache)
            handle.remove()
            assert same(before, state(session, cache))
        assert apart(cache, filled(model, given)[0]) < 1e-5
        assert session.swap("b", cache).kept == first
        assert apart(cache, filled(model, given)[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("error", ERRORS)
def test_a_shared_prefill_that_breaks_off_counts_nothing(error, tmp_path):
    model = tiny("llama")
    with attach(model, upper("llama", tmp_path, model)) as session:
        handle = model.model.layers[3].mlp.register_forward_hook(raiser(error))
        with pytest.raises(error):
            session.prefill_shared(prompt(), ["a", "b"])
        handle.remove()
        assert session.report().layers_kept == 0
        assert [one.kept for one in session.prefill_shared(prompt(), ["a", "b"])] == [0, 2]


@torch.no_grad()
def test_a_task_cancelled_while_a_thread_swaps(tmp_path):
    """The thread goes on: nothing has changed until it ends, and then everything has."""
    model = tiny("llama")
    given = prompt()
    inside, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def hold(*_):
        inside.set()
        assert go_on.wait(10)

    with attach(model, upper("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**placed(given), past_key_values=cache, use_cache=True)
        before = state(session, cache)
        handle = model.model.layers[3].register_forward_hook(hold)

        def swap():
            session.swap("b", cache)
            ended.set()

        async def cancelled():
            task = asyncio.create_task(asyncio.to_thread(swap))
            await asyncio.to_thread(inside.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert same(before, state(session, cache))
            go_on.set()

        asyncio.run(cancelled())
        assert ended.wait(10)
        handle.remove()
        assert session.report().swaps == 1
        assert apart(cache, filled(model, given)[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("error", ERRORS)
def test_an_interrupted_pass_chooses_nothing_for_the_next(error, tmp_path):
    model = tiny("llama")
    given = prompt()
    on_layers("llama", tmp_path / "low", model, [0], 5)
    with attach(model, {**upper("llama", tmp_path, model), "low": tmp_path / "low"}) as session:
        session.activate("a")
        handle = model.model.layers[3].register_forward_hook(raiser(error))
        with pytest.raises(error):
            model(**given)
        handle.remove()
        with session.use("low"):
            low = model(**given).logits
        session.activate("b")
        found = model(**given).logits
        with session.use("b"):
            assert torch.equal(found, model(**given).logits)
        assert not torch.equal(found, low)
        session.unload("a")
