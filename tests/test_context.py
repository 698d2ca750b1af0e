"""Caches that outlive a swap: against a fresh prefill under the new adapter."""

import functools

import pytest
import torch
from transformers import DynamicCache

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.context_helpers import (
    SUPPORTED,
    TOLERANCE,
    WINDOWS,
    apart,
    filled,
    nexts,
    on_layers,
    placed,
    prompt,
    tiny,
    upper,
)
from tests.families import tiny_model
from tests.test_attach import saved


def read(model, cache, given, sizes=None):
    """Fills a cache with a prompt, in chunks of these sizes."""
    given, start = placed(given), 0
    for size in sizes or [given["input_ids"].shape[1]]:
        end = start + size
        piece = {name: given[name][:, start:end] for name in ("input_ids", "position_ids")}
        model(**piece, attention_mask=given["attention_mask"][:, :end], past_key_values=cache, use_cache=True)
        start = end
    return cache


def stands(model, session, cache, choice, given):
    """Holds a cache to a fresh prefill under what a swap has activated, and to what comes next."""
    fresh, _ = filled(model, given)
    assert apart(cache, fresh, given["attention_mask"]) < TOLERANCE, choice
    assert (nexts(model, cache.fork(), given) - nexts(model, fresh, given)).abs().max() < TOLERANCE, choice


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_a_swapped_cache_is_that_of_a_fresh_prefill(family, padded, first, tmp_path):
    model = tiny(family)
    given = prompt(padded=padded)
    with attach(model, upper(family, tmp_path, model, first)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        lower = cache.layers[0].keys.clone()
        before = nexts(model, cache.fork(), given)
        done = session.swap("b", cache)
        assert (done.kept, done.recomputed) == (first, 4 - first)
        assert done.reason == f"no adapter changes a layer under {first}"
        assert session.report().layers_kept == first
        assert torch.equal(lower, cache.layers[0].keys)
        stands(model, session, cache, "b", given)
        assert (nexts(model, cache.fork(), given) - before).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("family", SUPPORTED)
def test_to_the_base_to_a_sum_to_rows_and_back(family, tmp_path):
    """Chunks, beyond the window; swaps one after the other; and at the end as if there had been none."""
    model = tiny(family)
    given = prompt(padded=True)
    with attach(model, upper(family, tmp_path, model)) as session:
        cache = read(model, session.new_cache(), given, [4, 3, 1, 1])
        never = read(model, DynamicCache(config=model.config), given, [4, 3, 1, 1])
        for choice in ("a", {"a": 0.5, "b": -2.0}, ["b", None], "b", None):
            assert session.swap(choice, cache).kept == 2
            stands(model, session, cache, choice, given)
        assert apart(cache, never, given["attention_mask"]) < 1e-6
        assert len(cache.chunks) == 1


@torch.no_grad()
@pytest.mark.parametrize("family", SUPPORTED)
def test_generation_goes_on_after_a_swap_as_if_it_had_always_been_so(family, tmp_path):
    model = tiny(family)
    given = prompt(padded=True)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(model, upper(family, tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        first = model.generate(**given, past_key_values=cache, **options)
        mask = torch.cat([given["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
        assert session.swap("b", cache).kept == 2
        second = model.generate(first, attention_mask=mask, past_key_values=cache, **options)
        assert torch.equal(second, model.generate(first, attention_mask=mask, **options))


@torch.no_grad()
def test_a_cache_under_other_adapters_is_an_error_until_it_is_swapped(tmp_path):
    model = tiny("llama")
    given = prompt()
    with attach(model, upper("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        with session.use("b"), pytest.raises(UsageError, match="swap"):
            nexts(model, cache, given)
        session.swap("b", cache)
        nexts(model, cache, given)
        session.load("b", tmp_path / "a")
        session.activate("b")
        with pytest.raises(UsageError, match="swap"):
            nexts(model, cache, given)


@torch.no_grad()
def test_an_empty_cache_fits_whatever_comes_first(tmp_path):
    model = tiny("llama")
    given = prompt()
    with attach(model, upper("llama", tmp_path, model)) as session:
        cache = session.new_cache()
        done = session.swap("a", cache)
        assert (done.kept, done.recomputed, done.reason) == (0, 0, "the cache is empty")
        session.activate("b")
        read(model, cache, given)
        cache.crop(-9)
        session.activate("a")
        read(model, cache, given)
        cache.reset()
        session.activate("b")
        read(model, cache, given)
        stands(model, session, cache, "b", given)


# what leaves no layer alone


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("llama", ["q_proj", "embed_tokens"], "an adapter changes the first layer"),
        ("llama", ["embed_tokens"], "an adapter changes the first layer"),
        ("gpt2", ["wte"], "an adapter changes the first layer"),
        ("phi3", ["qkv_proj"], "phi3 is none of the families whose upper layers run alone: gemma2, gpt2"),
        ("gpt_neox", ["query_key_value"], "gpt_neox is none of"),
        ("bloom", ["query_key_value"], "bloom is none of"),
    ],
)
def test_where_no_layer_can_be_kept_the_prompt_is_read_again(family, targets, said, padded, tmp_path):
    model = tiny_model(family)
    for name, seed in (("a", 1), ("b", 2)):
        saved(model, tmp_path / name, seed=seed, target_modules=targets)
    given = prompt(padded=padded)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(model, {"a": tmp_path / "a", "b": tmp_path / "b"}) as session:
        session.activate("a")
        cache = session.new_cache()
        ids = model.generate(**given, past_key_values=cache, **options)
        mask = torch.cat([given["attention_mask"], torch.ones(2, 3, dtype=torch.long)], dim=1)
        done = session.swap("b", cache)
        assert (done.kept, done.recomputed) == (0, 3)
        assert done.reason.startswith(said)
        ours = model.generate(ids, attention_mask=mask, past_key_values=cache, output_logits=True,
                              return_dict_in_generate=True, **options)  # fmt: skip
        fresh = model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options)
        assert (torch.stack(ours.logits) - torch.stack(fresh.logits)).abs().max() < TOLERANCE


@torch.no_grad()
def test_adapters_of_the_head_keep_every_layer(tmp_path):
    model = tiny("llama")
    given = prompt()
    for name, seed in (("a", 1), ("b", 2)):
        saved(model, tmp_path / name, seed=seed, target_modules=["lm_head"])
    with attach(model, {"a": tmp_path / "a"}) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        session.load("b", tmp_path / "b")
        done = session.swap("b", cache)
        assert (done.kept, done.recomputed, done.reason) == (4, 0, "no adapter changes a layer")
        stands(model, session, cache, "b", given)


@torch.no_grad()
def test_an_adapter_that_starts_lower_is_served_and_then_kept_for(tmp_path):
    model = tiny("llama")
    given = prompt(padded=True)
    low = on_layers("llama", tmp_path / "low", model, [1, 3], 5)
    with attach(model, upper("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        session.load("low", low)
        done = session.swap("low", cache)
        assert (done.kept, done.recomputed) == (0, 4)
        assert done.reason == "the adapter changes layer 1, under 2 where the cache was kept"
        stands(model, session, cache, "low", given)
        for choice in ("a", "low", "b"):
            assert session.swap(choice, cache).kept == 1
            stands(model, session, cache, choice, given)


@torch.no_grad()
def test_an_adapter_loaded_lower_before_the_first_token(tmp_path):
    model = tiny("llama")
    given = prompt()
    low = on_layers("llama", tmp_path / "low", model, [1, 3], 5)
    with attach(model, upper("llama", tmp_path, model)) as session:
        cache = session.new_cache()
        session.load("low", low)
        session.activate("low")
        read(model, cache, given)
        assert session.swap("a", cache).kept == 0
        stands(model, session, cache, "a", given)


@torch.no_grad()
@pytest.mark.parametrize("how", ["replaced", "compiled"])
def test_a_decoder_whose_forward_is_not_its_own_is_run_whole(how, tmp_path):
    model = tiny("llama")
    given = prompt()
    decoder = model.model
    with attach(model, upper("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        if how == "replaced":
            decoder.forward = functools.partial(type(decoder).forward, decoder)
        else:
            decoder.compile(backend="eager")
        done = session.swap("b", cache)
        assert done.kept == 0
        assert "replaced or compiled" in done.reason
        stands(model, session, cache, "b", given)


# caches that change otherwise


@torch.no_grad()
def test_beams_rows_and_crops_take_the_hidden_states_along(tmp_path):
    model = tiny("llama")
    given = prompt(padded=True)
    with attach(model, upper("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given, [5, 2, 2])
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 3]))
        cache.crop(-3)
        session.swap("b", cache)
        turned = {name: tensor[[1, 0, 0], :6] for name, tensor in given.items()}
        stands(model, session, cache, "b", turned)


@torch.no_grad()
@pytest.mark.parametrize("family", SUPPORTED)
def test_tokens_are_taken_back_beyond_the_window(family, tmp_path):
    """As assisted generation does: windows are left open until a crop closes them."""
    model = tiny(family)
    given = prompt()
    with attach(model, upper(family, tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        cache.activate_past_recording()
        read(model, cache, given)
        session.swap("b", cache)
        cache.crop(-2)
        short = {name: tensor[:, :7] for name, tensor in given.items()}
        for choice in ("a", "b"):
            session.swap(choice, cache)
            fresh, _ = filled(model, short)
            assert (nexts(model, cache, short) - nexts(model, fresh, short)).abs().max() < TOLERANCE
            cache.crop(-1)


@torch.no_grad()
def test_beam_search_and_assisted_generation_fill_it(tmp_path):
    model, helper = tiny("llama"), tiny_model("llama", seed=5)
    given = prompt(rows=1)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(model, upper("llama", tmp_path, model)) as session:
        for how in ({"num_beams": 3}, {"assistant_model": helper}):
            session.activate("a")
            cache = session.new_cache()
            found = model.generate(**given, past_key_values=cache, **options, **how)
            assert torch.equal(found, model.generate(**given, **options, **how))
            assert session.swap("b", cache).kept == 2
            if "num_beams" not in how:
                ids = found[:, : cache.get_seq_length()]
                stands(model, session, cache, "b", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@torch.no_grad()
def test_inputs_in_their_places_are_noted_too(tmp_path):
    for family in ("llama", "gpt2"):
        model = tiny(family)
        given = prompt(padded=True)
        ids, mask, positions = placed(given).values()
        with attach(model, upper(family, tmp_path / family, model)) as session:
            session.activate("a")
            cache = session.new_cache()
            if family == "llama":
                model(ids, mask, positions, cache, use_cache=True)
            else:
                model(ids, cache, mask, None, positions, use_cache=True)
            session.swap("b", cache)
            stands(model, session, cache, "b", given)


@torch.no_grad()
def test_a_mask_or_positions_that_only_some_passes_had(tmp_path):
    model = tiny("llama")
    given = prompt()
    ids = given["input_ids"]
    with attach(model, upper("llama", tmp_path, model)) as session:
        cache = session.new_cache()
        model(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
        more = {"input_ids": ids[:, 4:], "position_ids": placed(given)["position_ids"][:, 4:]}
        model(**more, attention_mask=given["attention_mask"], past_key_values=cache, use_cache=True)
        assert session.swap("a", cache).kept == 2
        stands(model, session, cache, "a", given)


# what is refused, and leaves everything as it was


def state(session, cache):
    """What a failed swap may not change, and the numbers of the cache."""
    report = session.report()
    numbers = [(layer, layer.keys, layer.values, layer.get_seq_length()) for layer in cache.layers]
    inputs = [t for chunk in cache.chunks for t in (chunk.tokens, chunk.positions, chunk.attended, chunk.entering)]
    kept = (cache.made_under, cache.depth, cache.mask, tuple(cache.layers), len(cache.chunks))
    return numbers, inputs, kept, session._hooks.default, session._hooks.current, (report.swaps, report.layers_kept)


def refused(session, choice, cache, match, kind=UsageError):
    before = state(session, cache)
    with pytest.raises(kind, match=match):
        session.swap(choice, cache)
    after = state(session, cache)
    assert all(a is b for x, y in zip(before[0], after[0], strict=True) for a, b in zip(x[:3], y[:3], strict=True))
    assert before[2:] == after[2:]
    return True


@torch.no_grad()
def test_passes_that_cannot_be_repeated_are_named(tmp_path):
    model = tiny("gpt2")
    given = placed(prompt())
    ids = given["input_ids"]
    types = {"token_type_ids": torch.ones_like(ids)}
    low = on_layers("gpt2", tmp_path / "low", model, [0], 5)
    with attach(model, upper("gpt2", tmp_path, model)) as session:
        typed, embedded, square = (session.new_cache() for _ in range(3))
        model(**given, **types, past_key_values=typed, use_cache=True)
        model(inputs_embeds=model.transformer.wte(ids), past_key_values=embedded, use_cache=True)
        table = torch.zeros(2, 1, 9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), -1e9)
        model(input_ids=ids, attention_mask=table, past_key_values=square, use_cache=True)
        assert refused(session, "a", square, "filled with attention_mask")
        session.swap("a", typed)
        fresh = DynamicCache(config=model.config)
        model(**given, **types, past_key_values=fresh, use_cache=True)
        assert apart(typed, fresh) < TOLERANCE
        assert session.swap("a", embedded).kept == 2
        stands(model, session, embedded, "a", prompt())
        session.load("low", low)
        assert refused(session, "low", typed, "filled with token_type_ids")
        assert refused(session, "low", embedded, "no token ids")


@torch.no_grad()
def test_masks_that_contradict_one_another_are_refused(tmp_path):
    model = tiny("llama")
    given = placed(prompt(padded=True))
    first = {name: tensor[:, :5] for name, tensor in given.items()}
    last = {"input_ids": given["input_ids"][:, 5:], "position_ids": given["position_ids"][:, 5:]}
    with attach(model, upper("llama", tmp_path, model)) as session:
        forgot, late = session.new_cache(), session.new_cache()
        model(**first, past_key_values=forgot, use_cache=True)
        model(**last, past_key_values=forgot, use_cache=True)
        assert refused(session, "a", forgot, "contradict")
        del first["attention_mask"]
        model(**first, past_key_values=late, use_cache=True)
        model(**last, attention_mask=given["attention_mask"], past_key_values=late, use_cache=True)
        assert refused(session, "a", late, "contradict")


@torch.no_grad()
def test_passes_that_nobody_saw_are_refused(tmp_path):
    model = tiny("llama")
    given = placed(prompt())
    with attach(model, upper("llama", tmp_path, model)) as session:
        cache = session.new_cache()
        model.model(**given, past_key_values=cache, use_cache=True)
        assert refused(session, "a", cache, "did not see")
    with attach(model, upper("llama", tmp_path, model)) as session:
        cache = read(model, session.new_cache(), prompt())
        with attach(model, {}) as other:
            assert refused(other, None, cache, "another session")
            with pytest.raises(UsageError, match="another session"):
                nexts(model, cache, given)
    with attach(model, {}) as session, pytest.raises(UsageError, match="another session"):
        nexts(model, cache, given)


@torch.no_grad()
@pytest.mark.parametrize(("family", "variant"), [("t5", 0), ("gpt2", 1)])
def test_models_with_cross_attention_have_no_such_cache(family, variant):
    with (
        attach(tiny_model(family, variant=variant), {}) as session,
        pytest.raises(RefusedError, match="cross-attention"),
    ):
        session.new_cache()


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWS)
def test_a_pass_that_broke_off_can_be_tried_again_or_is_refused(family, tmp_path):
    model = tiny(family)
    given = prompt()
    head = {name: tensor[:, :8] for name, tensor in given.items()}
    broken = []
    module = model.model.layers[2].mlp
    with attach(model, upper(family, tmp_path, model)) as session:
        cache = read(model, session.new_cache(), head)
        handle = model.model.embed_tokens.register_forward_hook(lambda *_: broken.append(1 / 0))
        with pytest.raises(ZeroDivisionError):
            nexts(model, cache, head)
        handle.remove()
        session.swap("a", cache)
        stands(model, session, cache, "a", head)
        handle = module.register_forward_hook(lambda *_: broken.append(1 / 0))
        with pytest.raises(ZeroDivisionError):
            nexts(model, cache, head)
        handle.remove()
        assert refused(session, "b", cache, "broke off")


def test_one_hidden_state_a_token_is_all_that_is_kept():
    """The share of the bytes that the docstring gives."""
    model = tiny("qwen3")
    config = model.config
    given = prompt()
    with torch.no_grad(), attach(model, {}) as session:
        cache = session._hooks.new_cache(2)
        read(model, cache, given)
    (chunk,) = cache.chunks
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    share = config.hidden_size / (2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim)
    assert chunk.entering.nbytes == pytest.approx(share * held)
