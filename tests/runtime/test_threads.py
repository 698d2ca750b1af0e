"""Threads, and what is active in them: taken along by the helpers, and a warning where a choice may have been lost."""

import asyncio
import contextvars
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from transformers import TextIteratorStreamer

from adaptrix.attaching import attach
from adaptrix.errors import AdaptrixWarning, UsageError
from adaptrix.runtime.calls import Calls
from tests.helpers.attached import inputs, logits, saved
from tests.helpers.families import tiny_model

LOST = "session.thread"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama")
    for seed, name in enumerate("ab"):
        saved(base, folder / name, seed=seed, target_modules=["q_proj", "v_proj"])
    return {name: folder / name for name in "ab"}


@pytest.fixture
def model():
    return tiny_model("llama").eval()


@pytest.fixture
def session(model, folders):
    with attach(model, folders) as session:
        yield session


@pytest.fixture
def alone(model, session):
    """The logits of each choice, in a thread that is alone."""
    found = {}
    for choice in ("a", "b", None):
        with session.use(choice):
            found[choice] = logits(model)
    return found


def started(call, *args, **kwargs):
    """Runs a call in a new thread, and returns what came out of it."""
    found = []
    thread = Thread(target=lambda: found.append(call(*args, **kwargs)))
    thread.start()
    thread.join(30)
    return found[0]


def warned(call, *args):
    """The warnings of a lost choice while a call runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args)
    return [
        str(one.message) for one in caught if issubclass(one.category, AdaptrixWarning) and LOST in str(one.message)
    ]


@pytest.mark.parametrize("part", ["whole", "decoder"])
def test_a_thread_started_in_a_block_is_told_once_that_it_runs_without_the_choice(model, session, part):
    def block():
        with session.use("a"), torch.no_grad():
            for _ in range(3):
                started(model if part == "whole" else model.model, **inputs(model))

    (message,) = warned(block)
    assert "default (the base)" in message
    assert "session.generate" in message
    assert not warned(block)


@pytest.mark.parametrize("kind", ["route", "given"])
def test_every_kind_of_block_is_noticed(model, session, kind):
    out, inp = model.model.layers[0].self_attn.q_proj.weight.shape
    factors = {"model.layers.0.self_attn.q_proj": (torch.ones(3, 1, inp), torch.ones(3, out, 1))}

    def block():
        with session.route(["a", "b", None]) if kind == "route" else session.given(factors):
            started(logits, model)

    assert len(warned(block)) == 1


def test_a_thread_of_a_pool_that_was_there_before_is_noticed_where_nothing_is_the_default(model, session):
    async def main():
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, logits, model)
        with session.use("a"):
            await loop.run_in_executor(None, logits, model)

    assert len(warned(asyncio.run, main())) == 1


def test_a_thread_younger_than_the_block_is_noticed_whatever_the_default(model, session, alone):
    session.activate("b")

    def block():
        with session.use("a"):
            assert torch.equal(started(logits, model), alone["b"])

    (message,) = warned(block)
    assert "default (b)" in message


def test_who_chose_is_not_warned(model, session):
    """Servers, whose threads choose or mean the default; tasks; copies of a context; backward passes."""

    def serve():
        session.activate("b")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(logits, model).result()
            with session.use("a"):
                pool.submit(logits, model).result()
        session.activate(None)

    def choosing():
        def other():
            with session.use(None):
                logits(model)

        with session.use("a"):
            started(other)
            started(contextvars.copy_context().run, logits, model)
            started(lambda: session.generate("b", **inputs(model), max_new_tokens=2))
            started(session.thread(logits, model).run)
        started(logits, model)

    async def tasks():
        async def plain():
            logits(model)

        task = asyncio.create_task(plain())
        with session.use("a"):
            await task
            await asyncio.to_thread(logits, model)

    def swapping():
        cache = session.new_cache()
        with session.use("a"), torch.no_grad():
            model(torch.tensor([[1, 2, 3]]), past_key_values=cache)
        session.swap("b", cache)
        session.activate(None)

    def backward():
        embedded = model.get_input_embeddings()(inputs(model)["input_ids"]).detach().requires_grad_()
        with session.use("a"):
            loss = model(inputs_embeds=embedded).logits.sum()
            started(loss.backward)

    for call in (serve, choosing, lambda: asyncio.run(tasks()), swapping, backward):
        assert not warned(call)


def test_a_thread_of_the_sessions_takes_the_choice_along(model, session, alone):
    found = {}

    def keep(name):
        found[name] = logits(model)

    with session.use("a"):
        threads = [session.thread(keep, name="a")]
        with session.use(None):
            threads.append(session.thread(keep, None))
    session.activate("b")
    threads.append(session.thread(keep, "b"))
    session.activate(None)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found.keys() == alone.keys()
    for choice in alone:  # another adapter is 0.1 off and more; products in threads side by side may round otherwise
        torch.testing.assert_close(found[choice], alone[choice], rtol=0, atol=1e-6)


@pytest.mark.parametrize("slots", [None, 1])
def test_unloading_waits_for_a_thread(model, folders, slots):
    entered, leave, order = threading.Event(), threading.Event(), []

    def work():
        entered.set()
        leave.wait(10)
        logits(model)
        order.append("worked")

    with attach(model, folders, slots=slots) as session:
        with session.use("a"):
            thread = session.thread(work)
        with pytest.raises(UsageError, match="start or drop"):
            session.unload("a")
        thread.start()
        assert entered.wait(10)
        unloading = Thread(target=lambda: (session.unload("a"), order.append("unloaded")))
        unloading.start()
        unloading.join(0.1)
        assert not order
        leave.set()
        unloading.join(10)
        thread.join(10)
        assert order == ["worked", "unloaded"]


def test_a_thread_that_never_starts_or_fails_keeps_nothing(session):
    def fail():
        raise KeyError("on purpose")

    with session.use("a"):
        thread, failing = session.thread(print), session.thread(fail)
    del thread
    hook, threading.excepthook = threading.excepthook, lambda *_: None
    try:
        failing.start()
        failing.join(10)
    finally:
        threading.excepthook = hook
    session.unload("a")
    assert session.adapters == ("b",)


class Words:
    """A tokenizer of numbers."""

    def decode(self, ids, **_):
        return " ".join(str(int(one)) for one in ids) + " "


@pytest.mark.parametrize("way", ["thread", "generate", "both"])
def test_streams_are_those_of_the_choice(model, session, way):
    ids = inputs(model, rows=1)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with session.use("a"):
        expected = model.generate(ids, **options)
    with session.use(None):
        assert not torch.equal(model.generate(ids, **options), expected)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=30)
    if way == "thread":
        with session.use("a"):
            thread = session.thread(model.generate, ids, streamer=streamer, **options)
    elif way == "generate":
        thread = Thread(target=session.generate, args=("a", ids), kwargs={"streamer": streamer, **options})
    else:
        thread = session.thread(session.generate, "a", ids, streamer=streamer, **options)
    thread.start()
    assert "".join(streamer).split() == [str(int(one)) for one in expected[0, ids.shape[1] :]]
    thread.join(30)


def test_generate_takes_every_choice(model, session):
    ids = inputs(model)["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for choice in ("a", {"a": 0.5, "b": 1.0}, None):
        with session.use(choice):
            expected = model.generate(ids, **options)
        assert torch.equal(session.generate(choice, ids, **options), expected)
    rows = ["a", None, "b"]
    with session.route(rows):
        expected = model.generate(ids, **options)
    assert torch.equal(session.generate(rows, inputs=ids, **options), expected)
    with pytest.raises(UsageError, match="no adapter of this name"):
        session.generate("c", ids)


def test_a_model_that_does_not_generate_is_told_so(tmp_path):
    model = tiny_model("bert").eval()
    saved(model, tmp_path / "a", target_modules=["query"])
    with attach(model, {"a": tmp_path / "a"}) as session, pytest.raises(UsageError, match="does not generate"):
        session.generate("a", **inputs(model))


def test_a_thread_that_starts_after_detach_does_not_run_the_base(model, session):
    ran, raised = [], []
    with session.use("a"):
        thread = session.thread(lambda: ran.append(logits(model)))
    session.detach()
    before, threading.excepthook = threading.excepthook, lambda found: raised.append(found.exc_value)
    try:
        thread.start()
        thread.join(30)
    finally:
        threading.excepthook = before
    assert ran == []
    assert isinstance(raised[0], UsageError)
    assert raised[0].problems[0].code == "session-state"


def test_a_load_by_another_thread_does_not_end_a_pass(model, session, tmp_path, monkeypatch):
    saved(tiny_model("llama"), tmp_path, seed=7, target_modules=["o_proj"])
    taken = Calls.taken.fget

    def loads_meanwhile(calls):
        if "c" not in session.adapters:
            monkeypatch.setattr(Calls, "taken", property(taken))
            other = Thread(target=session.load, args=("c", tmp_path))
            other.start()
            other.join(30)
        return taken(calls)

    monkeypatch.setattr(Calls, "taken", property(loads_meanwhile))
    with session.use("a"):
        logits(model)
    assert session.adapters == ("a", "b", "c")
