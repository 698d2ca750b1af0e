"""Caches filled and changed in every way that transformers knows, and then swapped."""

import pytest
import torch

from adaptrix.attaching import attach
from tests.helpers.families import tiny_model
from tests.helpers.swapping import (
    SUPPORTED,
    TOLERANCE,
    filled,
    nexts,
    placed,
    prompt,
    read,
    stands,
    tiny,
    upper,
)


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
        stands(model, cache, "b", turned)


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
                stands(model, cache, "b", {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


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
            stands(model, cache, "b", given)


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
        stands(model, cache, "a", given)
