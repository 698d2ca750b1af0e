"""Swapping adapters without reading the prompt again.

Layers under the first injected one do not depend on the adapter, so their keys and values stay valid. What
entered that layer is kept (one hidden state a token); a swap runs the layers from there on, under the new
adapter and with an empty cache, and puts their keys and values in the place of the old. The decoder runs as it
always does, its lower layers replaced by one that returns what was kept, so embeddings cannot matter, and
masks, positions and layer types are left to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.cache import AdapterCache
from adaptrix.runtime.filled import only
from adaptrix.runtime.history import Chunk
from adaptrix.runtime.invocation import stands
from adaptrix.runtime.selection import Selection

#: the decoders whose upper half is known to run alone, by model_type -> the name of their list of layers
FAMILIES = {"gpt2": "h", **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2"), "layers")}


@dataclass(frozen=True, slots=True)
class Swap:
    """The outcome of a swap: the numbers of layers of the cache that were kept and recomputed, and the reason."""

    kept: int
    recomputed: int
    reason: str


class _Kept(nn.Module):
    """Stands in for the lower layers: whatever its input, it returns what is known to come out of them."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.hidden


def layers_of(model: nn.Module) -> tuple[nn.Module, str] | None:
    """The decoder of a model and the name of its list of layers; None where :func:`why_whole` says why."""
    if why_whole(model):
        return None
    get: Any = model.get_decoder
    return get(), FAMILIES[_model_type(model)]


def why_whole(model: nn.Module) -> str:
    """The reason why the upper layers of a model cannot run alone; empty where they can."""
    kind = _model_type(model)
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        return f"{kind or type(model).__name__} is none of the families whose upper layers run alone: {known}"
    get: Any = getattr(model, "get_decoder", None)
    decoder = get() if get else None
    if not isinstance(decoder, nn.Module) or not hasattr(decoder, FAMILIES[kind]):
        return f"{type(model).__name__} has no decoder with layers"
    if any("forward" in vars(part) or part._compiled_call_impl is not None for part in (model, decoder)):
        return "the model's forward was replaced or compiled, and a copy of it would run the original"
    return ""


def depth_of(model: nn.Module, first_layer: float) -> int:
    """The number of layers under the first injected one, which can be kept; 0 for a model that only runs whole."""
    found = layers_of(model)
    return 0 if found is None else int(min(first_layer, len(getattr(*found))))


@torch.no_grad()
def refill(model: nn.Module, cache: AdapterCache, selection: Selection, empty: Callable[[], AdapterCache]) -> Swap:
    """Makes a cache what it would have been under ``selection``, which is active.

    ``empty`` makes an empty one, which it becomes where no layer can be kept. An error, whatever its kind, leaves the
    cache as it was. Raises :class:`UsageError` for one that was filled in a way that cannot be repeated.
    """
    filled = cache.filled()
    if not filled.size:
        cache.become(**vars(empty()))
        return Swap(0, 0, "the cache is empty")
    if selection.activated and (before := stands(cache, selection)) is not None:
        cache.become(made_under=selection.key, **only(cache.owner, before))
        return Swap(len(cache.layers), 0, "no token that is cached is read otherwise under it")
    found, reason = layers_of(model), why_whole(model) or _why_reread(cache, selection, filled)
    if found is None or reason:
        _reread(model, cache, filled, empty())
        return Swap(0, len(cache.layers), reason)
    depth, layers = cache.depth, len(cache.layers)
    if depth == layers:
        cache.become(made_under=selection.key, **only(cache.owner, None))
        return Swap(depth, 0, "no adapter changes a layer")
    run_upper(upper_half(*found, depth, filled), cache, filled, selection)
    return Swap(depth, layers - depth, f"no adapter changes a layer under {depth}")


def upper_half(decoder: nn.Module, name: str, depth: int, filled: Chunk) -> nn.Module:
    """A shallow copy of a decoder that starts at a layer; the modules are the same ones, hooks and all."""
    assert filled.entering is not None
    kept, upper = _Kept(filled.entering), copy.copy(decoder)
    layers = [kept if i < depth else layer for i, layer in enumerate(getattr(decoder, name))]
    upper._modules = {**decoder._modules, name: nn.ModuleList(layers)}
    return upper


def run_upper(upper: nn.Module, cache: AdapterCache, filled: Chunk, selection: Selection, **options: Any) -> Any:
    """Runs an upper half, or a model around it, over all that the cache was filled with, and puts the result there.

    Returns the module's answer.
    """
    _require_plain(filled, frozenset({"token_type_ids"}))  # these are added under the layers
    fresh = _recording_like(cache, DynamicCache(config=cache.config))
    answer = upper(
        inputs_embeds=filled.entering,
        attention_mask=_mask(cache, filled),
        position_ids=filled.positions,
        past_key_values=fresh,
        use_cache=True,
        **options,
    )
    layers = [*cache.layers[: cache.depth], *fresh.layers[cache.depth :]]
    cache.become(layers=layers, chunks=[filled], made_under=selection.key, **only(cache.owner, None))
    return answer


def require_own(cache: object, owner: int) -> AdapterCache:
    """The cache, if it is one that this session made. Raises :class:`UsageError` naming what it is instead."""
    if isinstance(cache, AdapterCache) and cache.owner == owner:
        return cache
    kind = type(cache).__name__
    found = f"a {kind}, which does not know what entered the layers"
    if isinstance(cache, AdapterCache):
        found = "a cache of another session, whose adapters this one does not know"
    remedy = "Make it with session.new_cache() and pass it as past_key_values."
    raise UsageError(Problem("cache-mismatch", "swap", found, "a cache of this session", remedy))


def _why_reread(cache: AdapterCache, selection: Selection, filled: Chunk) -> str:
    if selection.activated:
        return "an activated LoRA acts from its invocation tokens on, which the whole model is given"
    if not cache.depth:
        return "an adapter changes the first layer, or what enters it"
    if selection.first_layer < cache.depth:
        return f"the adapter changes layer {selection.first_layer}, under {cache.depth} where the cache was kept"
    if filled.entering is None and cache.depth < len(cache.layers):
        return f"what entered layer {cache.depth} was not seen for all of it"
    return ""


def _reread(model: nn.Module, cache: AdapterCache, filled: Chunk, fresh: AdapterCache) -> None:
    """The whole prompt again, for families or adapters that leave no layer alone."""
    _require_plain(filled, frozenset())
    if filled.tokens is None:
        raise _unrepeatable("it was given embeddings, and no token ids", "input_ids")
    mask = _mask(cache, filled)
    counted = any(chunk.positions is None for chunk in cache.chunks)
    if counted and filled.positions is not None and mask is not None and not mask.all() and why_whole(model):
        raise _unrepeatable("padded, and position_ids were given to some passes and not to others", "all or none")
    places = {} if filled.positions is None else {"position_ids": filled.positions}
    _recording_like(cache, fresh)
    model(input_ids=filled.tokens, attention_mask=mask, past_key_values=fresh, use_cache=True, **places)
    cache.become(**vars(fresh))


def _recording_like(cache: AdapterCache, fresh: DynamicCache) -> DynamicCache:
    """The fresh one, its windows left open if those of the cache are, so that tokens can be taken back."""
    if any(cache.is_recording_past(i) for i in range(len(cache.layers))):
        fresh.activate_past_recording()  # type: ignore[no-untyped-call]  # transformers has no types there
    return fresh


def _mask(cache: AdapterCache, filled: Chunk) -> Tensor | None:
    """The mask of all tokens; None if none was given. Raises :class:`UsageError` if one pass hid what another saw."""
    newest = cache.mask[:, : filled.size] if isinstance(cache.mask, Tensor) else None
    seen = filled.attended
    if newest is None and seen is None:
        return None
    agree = torch.equal(newest != 0, seen != 0) if newest is not None and seen is not None else _all(newest, seen)
    if not agree:
        raise _unrepeatable("the attention masks of its passes contradict one another", "one mask that grows")
    return newest


def _all(*masks: Tensor | None) -> bool:
    """True if the masks that are there hide nothing."""
    return all(bool(mask.all()) for mask in masks if mask is not None)


def _require_plain(filled: Chunk, harmless: frozenset[str]) -> None:
    if strange := sorted(filled.strange - harmless):
        raise _unrepeatable(f"it was filled with {', '.join(strange)}", "token ids, a flat mask and positions")


def _unrepeatable(found: str, expected: str) -> UsageError:
    remedy = "Make a new cache and give the model the whole prompt."
    return UsageError(Problem("cache-mismatch", "swap", found, expected, remedy))


def _model_type(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))
