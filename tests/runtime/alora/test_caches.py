"""Activated LoRA and caches: what goes on from one is as a pass over everything, or it is refused."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import adaptrix
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.alora import INVOCATION, TOLERANCE, adapter, close, logits, part, pieces, prompt, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*activated LoRA:adaptrix.AdaptrixWarning")


def cache_of(kind, base, session):
    """A cache of some kind; None for the one that the model makes itself."""
    kinds = {
        "session's": session.new_cache,
        "dynamic": lambda: DynamicCache(config=base.config),
        "static": lambda: StaticCache(config=base.config, max_cache_len=16),
        "the model's": lambda: None,
    }
    return kinds[kind]()


KINDS = ["session's", "dynamic", "static", "the model's"]


@pytest.mark.parametrize("size", [11, 5])
def test_a_prompt_that_generate_reads_in_pieces(size, base, tmp_path):
    """A piece of one token is none that was generated, though it comes to the model alike."""
    judge = adapter(base, tmp_path, tokens=[4])
    ids = prompt()["input_ids"][:1]
    ids[0, 11] = 4
    wanted = judge.generate(ids, max_new_tokens=4, do_sample=False)
    with adaptrix.attach(base, {"a": tmp_path}) as session, session.use("a"):
        assert torch.equal(base.generate(ids, max_new_tokens=4, do_sample=False, prefill_chunk_size=size), wanted)


@pytest.mark.parametrize("kind", ["dynamic", "session's"])
def test_beams_keep_the_invocation_of_their_row(kind, base, session):
    given = {name: prompt()[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
    with session.use("a"):
        wanted = base.generate(**given, **options, use_cache=False)
        found = base.generate(**given, **options, past_key_values=cache_of(kind, base, session))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[0, 6], [0, 6, 10], [0, 10, 11], [0, 3, 6, 11]])
def test_a_prompt_in_pieces_is_as_in_one(kind, cuts, base, session):
    given = prompt()
    if 6 in cuts:  # else the second invocation of row 1 is in the first piece with the other
        given["input_ids"][1, 1:4] = 11
    with session.use("a"):
        whole = logits(base, **given)
        found, _ = pieces(base, given, cuts, cache_of(kind, base, session))
    close(given, found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_that_the_base_has_read_is_continued(kind, base, made, session):
    given = prompt()
    with session.use(None):
        _, cache = pieces(base, part(given, 0, 6), [0, 4], cache_of(kind, base, session))
    with session.use("a"), torch.no_grad():
        found = base(**part(given, 6, 12), past_key_values=cache).logits
    close(given, found, logits(made[1], **given)[:, 6:])


def test_one_prefix_serves_many(base, several):
    given = prompt()
    with several.use(None):
        _, cache = pieces(base, part(given, 0, 6), [0])
    for name, tokens in (("a", INVOCATION), ("other", [9, 10]), ("a", INVOCATION)):
        given["input_ids"][:, 6 : 6 + len(tokens)] = torch.tensor(tokens)
        with several.use(name), torch.no_grad():
            found = base(**part(given, 6, 12), past_key_values=copy.deepcopy(cache)).logits
            close(given, found, logits(base, **given)[:, 6:])


def test_generate_goes_on_from_the_base(base, made, session):
    ids = prompt()["input_ids"][:2]
    with session.use(None):
        cache = session.new_cache()
        base.generate(ids[:, :6], max_new_tokens=1, past_key_values=cache)
    with session.use("a"):
        found = base.generate(ids, max_new_tokens=5, do_sample=False, past_key_values=cache)
    wanted = made[1].generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [8, 9, 11])
def test_an_invocation_that_the_base_has_read_is_refused(kind, cut, base, session):
    given = prompt()
    with session.use(None):
        _, cache = pieces(base, part(given, 0, cut), [0], cache_of(kind, base, session))
    with session.use("a"), pytest.raises(UsageError, match=r"begin at token 7.* the cache holds .* without") as refused:
        base(**part(given, cut, 12), past_key_values=cache)
    if kind != "static":  # the remedy helps
        assert f"cache.crop({6 - cut})" in str(refused.value)
        cache.crop(6 - cut)
        if kind == "session's":
            with session.use("a"):
                close(given, logits(base, **part(given, 6, 12), past_key_values=cache), logits(base, **given)[:, 6:])


def test_an_invocation_across_two_pieces_is_refused(base, session):
    given = {name: value[:1] for name, value in prompt().items()}
    for cuts in ([0, 8], [0, 9], range(12)):
        with session.use("a"), pytest.raises(UsageError, match="row 0: its invocation tokens begin at token 7"):
            pieces(base, given, [*cuts])


def test_a_second_invocation_is_refused(base, session):
    given = prompt()
    with session.use("a"), pytest.raises(UsageError, match="row 1: the cache holds tokens from 1 on"):
        pieces(base, given, [0, 5])


def test_a_cache_that_others_filled_is_refused(base, several):
    given = prompt()
    strange = tiny()(**part(given, 0, 5), use_cache=True).past_key_values
    with several.use("a"), pytest.raises(RefusedError, match="passes that this session did not see"):
        base(**part(given, 5, 12), past_key_values=strange)
    with several.use("plain"):
        _, plain = pieces(base, part(given, 0, 6), [0])
    with several.use("a"), pytest.raises(RefusedError, match="filled under other adapters"):
        base(**part(given, 6, 12), past_key_values=plain)
    with several.use("a"):
        _, active = pieces(base, part(given, 0, 10), [0])
    with several.use(None):
        base(**part(given, 10, 11), past_key_values=active)  # as without Adaptrix; but then it is neither's
    with several.use("a"), pytest.raises(RefusedError, match="did not see"):
        base(**part(given, 11, 12), past_key_values=active)


def test_a_cache_of_the_session_under_another_activated_lora(base, several):
    given = prompt()
    with several.use("a"):
        _, cache = pieces(base, part(given, 0, 10), [0], several.new_cache())
    for choice in ("other", None, "plain"):
        with several.use(choice), pytest.raises(UsageError, match="filled under other adapters"):
            base(**part(given, 10, 12), past_key_values=cache)


def test_rows_that_were_moved(base, session):
    given, order = prompt(), torch.tensor([3, 1, 0, 2])
    moved = {name: value[order] for name, value in given.items()}
    with session.use("a"):
        wanted = logits(base, **moved)[:, 10:]
        for kind in ("session's", "dynamic"):
            _, cache = pieces(base, part(given, 0, 10), [0], cache_of(kind, base, session))
            cache.reorder_cache(order)
            if kind == "session's":
                close(moved, logits(base, **part(moved, 10, 12), past_key_values=cache), wanted)
                continue
            with pytest.raises(RefusedError, match="rows of the cache were moved"):
                base(**part(moved, 10, 12), past_key_values=cache)


def test_a_sum_goes_on_from_what_acts_without_invocation(base, several):
    given, weights = prompt(), {"a": 0.5, "plain": 0.5}
    with several.use({"plain": 0.5}):
        _, cache = pieces(base, part(given, 0, 6), [0])
    with several.use(weights):
        close(given, logits(base, **part(given, 6, 12), past_key_values=cache), logits(base, **given)[:, 6:])


@pytest.mark.parametrize("before", ["a", "other", "plain", None])
@pytest.mark.parametrize("after", ["a", "plain"])
def test_a_swap_is_as_reading_again(before, after, base, several):
    given = prompt()
    cache = several.new_cache()
    with several.use(before):
        pieces(base, part(given, 0, 10), [0], cache)
    several.swap(after, cache)
    close(given, logits(base, **part(given, 10, 12), past_key_values=cache), logits(base, **given)[:, 10:])


def test_a_swap_before_the_invocation_keeps_every_layer(base, session):
    given, cache = prompt(), session.new_cache()
    given["input_ids"][1, 1:4] = 11
    pieces(base, part(given, 0, 6), [0], cache)
    done = session.swap("a", cache)
    assert (done.kept, done.recomputed) == (3, 0)
    close(given, logits(base, **part(given, 6, 12), past_key_values=cache), logits(base, **given)[:, 6:])


def test_a_prompt_for_several(base, several):
    given = {name: prompt()[name] for name in ("input_ids", "attention_mask")}
    for choice, done in zip(["a", None], several.prefill_shared(given, ["a", None]), strict=True):
        with several.use(choice):
            torch.testing.assert_close(done.logits, logits(base, **prompt())[:, -1], atol=TOLERANCE, rtol=0)
    assert "invocation" in done.reason


def test_a_cache_from_before_the_adapter_was_loaded(base, made):
    given = prompt()
    with adaptrix.attach(base, {}) as session:
        _, cache = pieces(base, part(given, 0, 6), [0], session.new_cache())
        _, strange = pieces(base, part(given, 0, 6), [0])
        session.load("a", made[0])
        with session.use("a"):
            close(given, logits(base, **part(given, 6, 12), past_key_values=cache), logits(base, **given)[:, 6:])
            with pytest.raises(RefusedError, match="did not see"):
                base(**part(given, 6, 12), past_key_values=strange)
