"""Adapters in slots: the same answers as without, whoever is paged out, compiled or not."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.attached import TARGETS, inputs, saved
from tests.helpers.double import EXACT
from tests.helpers.families import tiny_model
from tests.helpers.slots import TOKENS, VARIANTS, answer, chosen, made


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def model(request):
    return tiny_model(request.param).eval()


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    return made(model, tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def pair(model, adapters):
    """A session without slots, which is held to peft elsewhere, and one of two slots, on twins of a model."""
    plain, slotted = copy.deepcopy(model), copy.deepcopy(model)
    with attach(plain, adapters) as reference, attach(slotted, adapters, slots=2) as session:
        yield (plain, reference), (slotted, session)


def zero_but(session, slots):
    """Whether all slots but these are zero in every bank."""
    banks = session._slots.banks.values()
    buffers = [buffer for bank in banks for buffer in (bank.At, bank.Bt, bank.g1, bank.c)]
    return all(not buffer[slot].any() for buffer in buffers for slot in range(len(buffer)) if slot not in slots)


ROWS = ["a", None, "b", "a"], ["c", "d", "d", "c"], [None] * 4
CHOICES = ["a", "b", None, "c", "d", "a", {"a": 0.7, "d": -0.4}, *ROWS, "b"]


def test_slots_change_no_answer(pair):
    (plain, reference), (slotted, session) = pair
    base = answer(plain)
    for choice in CHOICES:
        with chosen(reference, choice), chosen(session, choice):
            expected = answer(plain)
            torch.testing.assert_close(answer(slotted), expected, atol=1e-5, rtol=1e-5)
        if choice not in (None, ROWS[-1]):
            assert not torch.allclose(expected, base)
    assert session.report().paged > len(VARIANTS)


def test_the_one_wanted_longest_ago_makes_room_and_leaves_nothing_behind(pair):
    _, (slotted, session) = pair
    for name, paged in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        with session.use(name):
            answer(slotted)
        assert session.report().paged == paged, name
    for name in ("a", "b"):
        session.unload(name)
        assert name not in session.adapters
    assert zero_but(session, ())


def test_the_default_and_what_is_in_use_are_never_paged_out(pair):
    (plain, reference), (slotted, session) = pair
    session.activate("a")
    reference.activate("a")
    with session.use("b"):
        with pytest.raises(UsageError, match="slots=3 or more, or leave the outer"), session.use("c"):
            pass
        with pytest.raises(UsageError, match=r"3 adapters .* the choice itself"), session.route(["a", "b", "c", None]):
            pass
    torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)
    with session.use("c"), reference.use("c"):
        torch.testing.assert_close(answer(slotted), answer(plain), atol=1e-5, rtol=1e-5)


def test_a_default_that_keeps_the_only_slot_is_named(model, adapters):
    with attach(copy.deepcopy(model), adapters, slots=1) as session:
        session.activate("a")
        with pytest.raises(UsageError, match=r"the default, which stays.*session.activate\(None\)"), session.use("b"):
            pass


def test_as_many_tasks_as_slots_take_turns(pair):
    """The way out that the message names, and threads, which wait by themselves."""
    (plain, reference), (slotted, session) = pair
    alone = {}
    for name in VARIANTS:
        with reference.use(name):
            alone[name] = answer(plain)

    def ask(name):
        with session.use(name):
            return torch.allclose(answer(slotted), alone[name], atol=1e-5)

    async def turn(name, room):
        async with room:
            with session.use(name):
                await asyncio.sleep(0)
                return torch.allclose(answer(slotted), alone[name], atol=1e-5)

    async def main():
        room = asyncio.Semaphore(2)
        right = await asyncio.gather(*(turn(name, room) for name in "abcdabcd"))
        return right + await asyncio.gather(*(asyncio.to_thread(ask, name) for name in "abcdabcd"))

    assert all(asyncio.run(main()))


def test_eviction_under_load_gives_no_wrong_answer(pair):
    """Eight threads, four adapters, two slots; every answer is compared with that of a thread alone."""
    (plain, reference), (slotted, session) = pair
    alone = {}
    for name in (*VARIANTS, None):
        with reference.use(name):
            alone[name] = answer(plain)

    def work(worker):
        wrong = 0
        for turn in range(60):
            name = [*VARIANTS, None][(worker * 7 + turn * 3) % 5]
            with session.use(name):
                wrong += not torch.allclose(answer(slotted), alone[name], atol=1e-5)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert session.report().paged > 8


def test_tasks_of_one_thread_are_told_when_they_keep_all_slots(pair):
    _, (slotted, session) = pair

    async def hold(name, entered, leave):
        with session.use(name):
            entered.set()
            await leave.wait()

    async def main():
        leave, entered = asyncio.Event(), [asyncio.Event(), asyncio.Event()]
        holders = [asyncio.create_task(hold(name, event, leave)) for name, event in zip("ab", entered, strict=True)]
        for event in entered:
            await event.wait()
        with pytest.raises(UsageError, match=r"3 adapters or sums at once for 2 slots.*other asyncio tasks.*slots=3"):
            session.use("c").__enter__()
        leave.set()
        await asyncio.gather(*holders)
        with session.use("c"):
            answer(slotted)

    asyncio.run(main())


def test_what_no_slot_can_hold_is_refused_and_nothing_changes(model, adapters, tmp_path):
    twin = copy.deepcopy(model)
    targets = TARGETS.get(model.config.model_type, ["q_proj"])
    saved(model, tmp_path / "wide", rank=9, target_modules=targets)
    with attach(twin, adapters, slots=2) as session:
        with pytest.raises(RefusedError, match="max_rank=9"):
            session.load("wide", tmp_path / "wide")
        with pytest.raises(UsageError, match="rank 11"), session.use({"a": 0.5, "b": 0.5}):
            pass
        assert session.adapters == tuple(VARIANTS)
        assert zero_but(session, ())
    with attach(twin, adapters, slots=2, max_rank=16) as session:
        session.load("wide", tmp_path / "wide")
        with pytest.raises(UsageError, match="without slots"):
            session.parameters("a")
        with session.use({"a": 0.5, "b": 0.5}):
            assert not torch.allclose(answer(twin), answer(model))
    with pytest.raises(RefusedError, match="max_rank=8"):
        attach(twin, adapters, slots=2, max_rank=4)
    assert not any(module._forward_hooks for module in twin.modules())
    for options in ({"slots": 0}, {"slots": 2, "max_rank": -1}):
        with pytest.raises(UsageError, match="slots"):
            attach(twin, adapters, **options)
    with pytest.raises(UsageError, match="max_rank"):
        attach(twin, {}, slots=2)


def test_embeddings_and_heads_in_slots(tmp_path):
    model = tiny_model("llama").eval()
    options = {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}
    adapted = {name: saved(model, tmp_path / name, seed=seed, **options) for seed, name in enumerate("ab")}
    with attach(model, {name: tmp_path / name for name in adapted}, slots=1) as session:
        for name in "abab":
            with session.use(name), torch.no_grad():
                expected = adapted[name](**inputs(model)).logits
                torch.testing.assert_close(model(**inputs(model)).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_backward_pass_is_right_until_a_slot_is_written_and_refused_from_then_on(model, adapters, in_double):
    plain, slotted = copy.deepcopy(model).double(), copy.deepcopy(model).double()

    def gradient(model, session, between=None):
        entering = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
        with session.use("b"):
            loss = model(inputs_embeds=entering).logits.square().mean()
        if between is not None:
            with session.use(between):
                answer(model)
        loss.backward()
        return entering.grad

    with attach(plain, adapters) as reference, attach(slotted, adapters, slots=2) as session:
        expected = gradient(plain, reference)
        assert (gradient(slotted, session) - expected).abs().max() < EXACT * expected.abs().max()
        with pytest.raises(RefusedError, match="Call backward first"):
            gradient(slotted, session, between="c")
        both_lie_there = gradient(slotted, session, between="c")
        assert (both_lie_there - expected).abs().max() < EXACT * expected.abs().max()
