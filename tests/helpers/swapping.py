"""Tiny models with windows shorter than a prompt, adapters on their upper layers, prompts with and without padding."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from adaptrix.runtime.swapping import FAMILIES
from tests.helpers.attached import TARGETS, saved
from tests.helpers.families import FAMILIES as FAMILY_CONFIGS

TOLERANCE = 1e-5
SUPPORTED = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2"]
#: those of them that attend to the last few tokens only, in all layers, in the upper three and in every other one
WINDOWS = {
    "mistral": {"sliding_window": 5},
    "qwen2": {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": 5},
}


def tiny(family, **options):
    """A tiny model of four layers, its windows shorter than the prompt."""
    sizes = FAMILY_CONFIGS["llama"][1] if family == "mistral" else FAMILY_CONFIGS[family][0]
    depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": 4}
    config = AutoConfig.for_model(**{**sizes, **depth, **WINDOWS.get(family, {}), **options})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def on_layers(family, folder, model, layers, seed, **options):
    """An adapter on some layers of a model; its folder."""
    found = {"layers_to_transform": list(layers), "layers_pattern": FAMILIES.get(family, "layers"), **options}
    saved(model, folder, seed=seed, target_modules=TARGETS.get(family, ["q_proj", "v_proj", "down_proj"]), **found)
    return folder


def upper(family, tmp_path, model, first=2):
    """Two adapters on the layers from ``first`` on, by name."""
    layers = range(first, model.config.num_hidden_layers)
    return {name: on_layers(family, tmp_path / name, model, layers, seed) for seed, name in enumerate("ab", 1)}


def prompt(rows=2, padded=False, size=9):
    """Token ids and a mask, as a tokenizer gives them."""
    torch.manual_seed(3)
    ids = torch.randint(1, 40, (rows, size))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


def placed(given):
    """The same with the positions that ``generate`` would count."""
    mask = given["attention_mask"]
    return {**given, "position_ids": (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)}


def filled(model, given):
    """A plain cache and the last logits of a prompt under what is in force."""
    cache = DynamicCache(config=model.config)
    logits = model(**placed(given), past_key_values=cache, use_cache=True).logits[:, -1]
    return cache, logits


def nexts(model, cache, given, token=5):
    """The logits of one token more."""
    mask = given["attention_mask"]
    rows = len(mask)
    more = {
        "input_ids": torch.full((rows, 1), token),
        "attention_mask": torch.cat([mask, mask.new_ones(rows, 1)], dim=1),
        "position_ids": mask.sum(1, keepdim=True),
    }
    return model(**more, past_key_values=cache, use_cache=True).logits


def apart(one, other, mask=None):
    """The largest difference between the keys and values of two caches, where no row of ``mask`` has padding."""
    pairs = zip(one.layers, other.layers, strict=True)
    found = [(a - b).abs() for x, y in pairs for a, b in ((x.keys, y.keys), (x.values, y.values))]
    if mask is not None:
        found = [gap[:, :, mask.bool().all(0)[-gap.shape[2] :]] for gap in found]
    return float(max(gap.max() for gap in found))


def read(model, cache, given, sizes=None):
    """Fills a cache with a prompt, in chunks of these sizes."""
    given, start = placed(given), 0
    for size in sizes or [given["input_ids"].shape[1]]:
        end = start + size
        piece = {name: given[name][:, start:end] for name in ("input_ids", "position_ids")}
        model(**piece, attention_mask=given["attention_mask"][:, :end], past_key_values=cache, use_cache=True)
        start = end
    return cache


def stands(model, cache, choice, given):
    """Holds a cache to a fresh prefill under what is in force, and to what comes next."""
    fresh, _ = filled(model, given)
    assert apart(cache, fresh, given["attention_mask"]) < TOLERANCE, choice
    assert (nexts(model, cache.fork(), given) - nexts(model, fresh, given)).abs().max() < TOLERANCE, choice


def state(session, cache):
    """What a swap that fails may not change: every object of the cache, what is in force, and the counts."""
    report = session.report()
    numbers = [thing for layer in cache.layers for thing in (layer, layer.keys, layer.values)]
    kept = (cache.made_under, cache.depth, id(cache.mask), len(cache.chunks), report.swaps, report.layers_kept)
    return numbers, kept, session._hooks.default, session._hooks.current


def same(before, after):
    """Whether two states are one."""
    return before[1:] == after[1:] and all(a is b for a, b in zip(before[0], after[0], strict=True))
