"""What a swap refuses by name, with everything left as it was."""

import pytest
import torch
from transformers import DynamicCache

from adaptrix.attaching import attach
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.swapping import (
    TOLERANCE,
    WINDOWS,
    apart,
    nexts,
    on_layers,
    placed,
    prompt,
    read,
    same,
    stands,
    state,
    tiny,
    upper,
)


def refused(session, choice, cache, match, kind=UsageError):
    before = state(session, cache)
    with pytest.raises(kind, match=match):
        session.swap(choice, cache)
    return same(before, state(session, cache))


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
        stands(model, embedded, "a", prompt())
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
def test_padding_whose_positions_only_some_passes_had_is_refused_where_they_are_counted_otherwise(tmp_path):
    """What a family counts by itself is known of those alone whose upper layers run alone."""
    model = tiny_model("opt")
    saved(model, tmp_path / "a", target_modules=["q_proj"])
    given = placed(prompt(padded=True))
    last = {"input_ids": given["input_ids"][:, 5:], "position_ids": given["position_ids"][:, 5:]}
    with attach(model, {"a": tmp_path / "a"}) as session:
        cache = session.new_cache()
        model(input_ids=given["input_ids"][:, :5], attention_mask=given["attention_mask"][:, :5], past_key_values=cache)
        model(**last, attention_mask=given["attention_mask"], past_key_values=cache)
        assert refused(session, "a", cache, "given to some passes")


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
        stands(model, cache, "a", head)
        handle = module.register_forward_hook(lambda *_: broken.append(1 / 0))
        with pytest.raises(ZeroDivisionError):
            nexts(model, cache, head)
        handle.remove()
        assert refused(session, "b", cache, "was interrupted")
