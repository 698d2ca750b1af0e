"""Caches that outlive a swap: against a fresh prefill under the new adapter."""

import functools

import pytest
import torch
from transformers import DynamicCache

from adaptrix.attaching import attach
from adaptrix.errors import UsageError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.sampling import crossed
from tests.helpers.swapping import (
    SUPPORTED,
    TOLERANCE,
    apart,
    nexts,
    on_layers,
    prompt,
    read,
    stands,
    tiny,
    upper,
)

pytestmark = pytest.mark.numeric


@torch.no_grad()
@pytest.mark.parametrize(("family", "padded", "first"), crossed(SUPPORTED, [False, True], [1, 3]))
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
        stands(model, cache, "b", given)
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
            stands(model, cache, choice, given)
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
        stands(model, cache, "b", given)


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
        stands(model, cache, "b", given)


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
        stands(model, cache, "low", given)
        for choice in ("a", "low", "b"):
            assert session.swap(choice, cache).kept == 1
            stands(model, cache, choice, given)


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
        stands(model, cache, "a", given)


@torch.no_grad()
@pytest.mark.parametrize("how", ["replaced", "compiled"])
def test_a_decoder_whose_forward_is_not_its_own_is_run_whole(how, tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    given = prompt()
    decoder = model.model
    with attach(model, upper("llama", tmp_path, model, first=1)) as session:
        session.activate("a")
        cache = read(model, session.new_cache(), given)
        if how == "replaced":
            decoder.forward = functools.partial(type(decoder).forward, decoder)
        else:
            decoder.compile(backend="eager")
        done = session.swap("b", cache)
        assert done.kept == 0
        assert "replaced or compiled" in done.reason
        stands(model, cache, "b", given)


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
