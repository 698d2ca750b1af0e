"""One prompt for several adapters: against a prefill of its own for each."""

import copy

import pytest
import torch

from adaptrix.attaching import attach
from adaptrix.errors import UsageError
from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.sampling import crossed
from tests.helpers.swapping import (
    SUPPORTED,
    TOLERANCE,
    WINDOWS,
    apart,
    filled,
    nexts,
    on_layers,
    prompt,
    tiny,
    upper,
)

CHOICES = ["a", "b", None, {"a": 0.5, "b": 0.5}, ["b", None]]


def under(session, choice):
    return session.route(choice) if isinstance(choice, list) else session.use(choice)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_each_choice_is_as_if_it_had_read_the_prompt_alone(family, padded, tmp_path):
    model = tiny(family)
    given = prompt(padded=padded)
    with attach(model, upper(family, tmp_path, model)) as session:
        found = session.prefill_shared(given, CHOICES)
        assert repr(found[1]).endswith("2 layers kept, 2 recomputed>")
        assert "adapters a, b" in repr(session)
        assert [(one.kept, one.recomputed) for one in found] == [(0, 4)] + [(2, 2)] * 4
        assert session.report().layers_kept == 8
        for choice, one in zip(CHOICES, found, strict=True):
            with under(session, choice):
                cache, logits = filled(model, given)
                assert (one.logits - logits).abs().max() < TOLERANCE
                assert apart(one.cache, cache) < TOLERANCE
                assert (nexts(model, one.cache, given) - nexts(model, cache, given)).abs().max() < TOLERANCE
        assert (found[0].logits - found[2].logits).abs().max() > 1e-3


@torch.no_grad()
def test_the_lower_layers_run_once(tmp_path):
    model = tiny("llama")
    with attach(model, upper("llama", tmp_path, model)) as session:
        ran = []
        for i, layer in enumerate(model.model.layers):
            layer.register_forward_hook(lambda *_, i=i: ran.append(i))
        session.prefill_shared(prompt(), ["a", "b", None])
    assert ran == [0, 1, 2, 3, 2, 3, 2, 3]


CHANGES = {
    "grown": lambda cache, model, given: nexts(model, cache, given),
    "cropped": lambda cache, model, given: cache.crop(-2),
    "reordered": lambda cache, model, given: cache.reorder_cache(torch.tensor([1, 0])),
    "repeated": lambda cache, model, given: cache.batch_repeat_interleave(2),
    "picked": lambda cache, model, given: cache.batch_select_indices(torch.tensor([1])),
    "emptied": lambda cache, model, given: cache.reset(),
}


@torch.no_grad()
@pytest.mark.parametrize(("family", "change", "victim"), crossed(["gpt2", *WINDOWS], CHANGES, [0, 1]))
def test_what_happens_to_one_cache_does_not_happen_to_another(family, change, victim, tmp_path):
    model = tiny(family)
    given = prompt(size=4 if change == "cropped" else 9)
    with attach(model, upper(family, tmp_path, model)) as session:
        caches = [one.cache for one in session.prefill_shared(given, ["a", "b"])]
        other = caches[1 - victim]
        before = copy.deepcopy(other)
        with session.use("ab"[victim]):
            CHANGES[change](caches[victim], model, given)
        assert apart(other, before) == 0
        with session.use("ab"[1 - victim]):
            assert torch.equal(nexts(model, other, given), nexts(model, before, given))


@torch.no_grad()
@pytest.mark.parametrize("family", SUPPORTED)
def test_a_shared_cache_generates_and_swaps(family, tmp_path):
    model = tiny(family)
    given = prompt(padded=True)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.cat([given["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    with attach(model, upper(family, tmp_path, model)) as session:
        _, one = session.prefill_shared(given, ["a", "b"])
        tokens = torch.cat([given["input_ids"], one.logits.argmax(-1, keepdim=True)], dim=1)
        with session.use("b"):
            found = model.generate(tokens, attention_mask=mask, past_key_values=one.cache, **options)
            assert torch.equal(found, model.generate(**given, **{**options, "max_new_tokens": 5}))
        assert session.swap("a", one.cache).kept == 2
        mask = torch.cat([given["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
        fresh, _ = filled(model, {"input_ids": found[:, :-1], "attention_mask": mask})
        assert apart(one.cache, fresh, mask) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_the_prompt_given_twice_is_refused_and_not_read_twice(padded, tmp_path):
    model = tiny("llama")
    given = prompt(padded=padded)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(model, upper("llama", tmp_path, model)) as session:
        (one,) = session.prefill_shared(given, ["a"])
        with session.use("a"), pytest.raises(UsageError, match="crop"):
            model.generate(**given, past_key_values=one.cache, **options)
        one.cache.crop(-1)
        with session.use("a"):
            found = model.generate(**given, past_key_values=one.cache, **options)
            assert torch.equal(found, model.generate(**given, **options))


@torch.no_grad()
@pytest.mark.parametrize(("family", "said"), [("phi3", "phi3 is none of the families"), ("gpt_neox", "gpt_neox is")])
def test_other_families_run_whole_and_say_so(family, said, tmp_path):
    model = tiny_model(family)
    targets = {"phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"]}[family]
    saved(model, tmp_path / "a", target_modules=targets, layers_to_transform=[2])
    given = prompt(padded=True)
    with attach(model, {"a": tmp_path / "a"}) as session:
        for choice, one in zip(["a", None], session.prefill_shared(given, ["a", None]), strict=True):
            assert (one.kept, one.recomputed) == (0, 3)
            assert said in one.reason
            with session.use(choice):
                assert (one.logits - filled(model, given)[1]).abs().max() < TOLERANCE


@torch.no_grad()
def test_an_adapter_of_the_first_layer_shares_nothing_and_one_of_the_head_all(tmp_path):
    model = tiny("llama")
    on_layers("llama", tmp_path / "low", model, range(4), 3)
    saved(model, tmp_path / "head", seed=4, target_modules=["lm_head"])
    given = prompt()
    with attach(model, {name: tmp_path / name for name in ("low", "head")}) as session:
        low = session.prefill_shared(given, ["low", "head"])
        assert [one.kept for one in low] == [0, 0]
        assert "first layer" in low[1].reason
        head = session.prefill_shared(given, [None, "head"])
        assert [one.kept for one in head] == [0, 3]
        for one in (low[1], head[1]):
            with session.use("head"):
                assert (one.logits - filled(model, given)[1]).abs().max() < TOLERANCE


def test_what_is_no_prompt_is_refused(tmp_path):
    model = tiny("llama")
    given = prompt()
    with attach(model, upper("llama", tmp_path, model)) as session:
        with pytest.raises(UsageError, match="no choices"):
            session.prefill_shared(given, [])
        with pytest.raises(UsageError, match="a list"):
            session.prefill_shared(given, "ab")
        with pytest.raises(UsageError, match="tokenizer"):
            session.prefill_shared({}, ["a"])
        with pytest.raises(UsageError, match="left"):
            session.prefill_shared({**given, "attention_mask": given["attention_mask"].tril()[:, :9]}, ["a"])
        with pytest.raises(UsageError, match="nobody"):
            session.prefill_shared(given, ["a", "nobody"])
        assert session.report().layers_kept == 0
