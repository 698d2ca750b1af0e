"""Caches that outlive a swap: against a fresh prefill under the new adapter."""

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from adaptrix.attaching import attach
from adaptrix.errors import UsageError
from adaptrix.runtime.context import FAMILIES
from tests.families import tiny_model
from tests.test_attach import TARGETS, saved

TOLERANCE = 1e-5
SUPPORTED = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2"]


def tiny(family):
    """A tiny model; Mistral's has a window that is shorter than the prompt."""
    if family != "mistral":
        return tiny_model(family).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 28, "intermediate_size": 44, "num_hidden_layers": 3, "vocab_size": 97}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "sliding_window": 5}
    return MistralForCausalLM(MistralConfig(**sizes, **heads)).eval()


def upper_half(family, tmp_path, model):
    """Two adapters on the upper layers of a model."""
    depth = model.config.num_hidden_layers
    for name, seed in (("a", 1), ("b", 2)):
        options = {"layers_to_transform": list(range(1, depth)), "layers_pattern": FAMILIES[family]}
        saved(model, tmp_path / name, seed=seed, target_modules=TARGETS.get(family, ["q_proj", "v_proj"]), **options)
    return {"a": tmp_path / "a", "b": tmp_path / "b"}


def prompt(rows=2, padded=False):
    torch.manual_seed(3)
    ids = torch.randint(1, 40, (rows, 9))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def nexts(model, cache, ids, mask):
    """The logits of one token more."""
    position = mask.sum(1, keepdim=True)
    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": position}
    return model(**given, past_key_values=cache, use_cache=True).logits


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", SUPPORTED)
def test_a_swapped_cache_is_that_of_a_fresh_prefill(family, padded, tmp_path):
    model = tiny(family)
    given = prompt(padded=padded)
    step = torch.tensor([[5], [6]])
    with attach(model, upper_half(family, tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**given, past_key_values=cache, use_cache=True)
        lower = [layer.keys.clone() for layer in cache.layers[:1]]
        done = session.swap("b", cache)
        assert done.kept == 1
        assert session.report().layers_kept == 1
        assert done.recomputed == model.config.num_hidden_layers - 1
        assert torch.equal(lower[0], cache.layers[0].keys)
        swapped = nexts(model, cache, step, given["attention_mask"])
        fresh = DynamicCache(config=model.config)
        model(**given, past_key_values=fresh, use_cache=True)
        wanted = nexts(model, fresh, step, given["attention_mask"])
        session.activate("a")
        other = nexts(model, _filled(model, given), step, given["attention_mask"])
    assert (swapped - wanted).abs().max() < TOLERANCE
    assert (wanted - other).abs().max() > 1e-4


def _filled(model, given):
    cache = DynamicCache(config=model.config)
    model(**given, past_key_values=cache, use_cache=True)
    return cache


@torch.no_grad()
def test_generation_goes_on_after_a_swap_as_if_it_had_always_been_so(tmp_path):
    model = tiny_model("llama").eval()
    ids = prompt(rows=1)["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with attach(model, upper_half("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        first = model.generate(ids, past_key_values=cache, **options)
        session.swap("b", cache)
        second = model.generate(first, past_key_values=cache, **options)
        assert torch.equal(second, model.generate(first, **options))


@torch.no_grad()
def test_a_cache_under_other_adapters_is_an_error_until_it_is_swapped(tmp_path):
    model = tiny_model("llama").eval()
    given = prompt()
    with attach(model, upper_half("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**given, past_key_values=cache, use_cache=True)
        with session.use("b"), pytest.raises(UsageError, match="swap"):
            nexts(model, cache, torch.tensor([[5], [6]]), given["attention_mask"])
        session.swap("b", cache)
        nexts(model, cache, torch.tensor([[5], [6]]), given["attention_mask"])
        with pytest.raises(UsageError, match="new_cache"):
            session.swap("a", DynamicCache(config=model.config))


@torch.no_grad()
@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "embed_tokens"]), ("phi3", ["qkv_proj"])])
def test_where_no_layer_can_be_kept_the_prompt_is_read_again(family, targets, tmp_path):
    model = tiny_model(family).eval()
    for name, seed in (("a", 1), ("b", 2)):
        saved(model, tmp_path / name, seed=seed, target_modules=targets)
    given = prompt()
    del given["position_ids"]
    with attach(model, {"a": tmp_path / "a", "b": tmp_path / "b"}) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**given, past_key_values=cache, use_cache=True)
        assert session.swap("b", cache).kept == 0
        fresh = _filled(model, given)
        for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
            assert (ours.keys - theirs.keys).abs().max() < TOLERANCE


@torch.no_grad()
def test_beams_and_crops_take_the_hidden_states_along(tmp_path):
    model = tiny_model("llama").eval()
    given = prompt()
    with attach(model, upper_half("llama", tmp_path, model)) as session:
        session.activate("a")
        cache = session.new_cache()
        model(**given, past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.crop(-2)
        session.swap("b", cache)
        turned = {name: tensor.flip(0)[:, :7] for name, tensor in given.items()}
        fresh = _filled(model, turned)
        for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
            assert (ours.keys - theirs.keys).abs().max() < TOLERANCE
