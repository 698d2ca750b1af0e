"""Swapping adapters without reading the prompt again.

Layers under the first injected one do not depend on the adapter, so their keys and values stay valid. What
entered that layer is kept (one hidden state a token); a swap runs the layers from there on, under the new
adapter and with an empty cache, and grafts the kept layers underneath. The decoder runs as it always does,
its lower layers replaced by ones that do nothing, so masks, positions and layer types are its own business.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.cache import AdapterCache

#: the decoders whose upper half is known to run alone, by model_type -> the name of their list of layers
FAMILIES = {"gpt2": "h", **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2"), "layers")}


@dataclass(frozen=True, slots=True)
class Swap:
    """What a swap did: how many layers of the cache were kept and how many computed anew."""

    kept: int
    recomputed: int


class _Nothing(nn.Module):
    """A layer that hands its input on."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class _Zero(nn.Module):
    """Position embeddings that add nothing: what enters an upper layer has them already."""

    def forward(self, positions: Tensor) -> Tensor:
        return positions.new_zeros(()).float()


def layers_of(model: nn.Module) -> tuple[nn.Module, str] | None:
    """The decoder of a model and the name of its list of layers; None for a family that is not known to do."""
    name = FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))
    get: Any = getattr(model, "get_decoder", None)
    decoder = get() if name and get else None
    return (decoder, name) if name and isinstance(decoder, nn.Module) and hasattr(decoder, name) else None


@torch.no_grad()
def refill(model: nn.Module, cache: AdapterCache, first_layer: float) -> Swap:
    """Makes a cache what it would have been under the adapters now in force, the first at ``first_layer``."""
    if not cache.get_seq_length():
        return Swap(0, 0)
    found = layers_of(model)
    if found is None or not cache.depth or first_layer < cache.depth:
        return _from_tokens(model, cache)
    decoder, name = found
    fresh = _empty(model)
    entering = torch.cat(cache.entering, dim=1)
    positions = torch.cat([chunk.expand(len(entering), -1) for chunk in cache.positions], dim=1)
    _upper(decoder, name, cache.depth)(
        inputs_embeds=entering,
        attention_mask=cache.mask,
        position_ids=positions,
        past_key_values=fresh,
        use_cache=True,
    )
    return _graft(cache, fresh, cache.depth)


def _from_tokens(model: nn.Module, cache: AdapterCache) -> Swap:
    """The whole prompt again, for families or adapters that leave no layer alone."""
    tokens = torch.cat(cache.tokens, dim=1) if cache.tokens else None
    if tokens is None or tokens.shape[1] != cache.get_seq_length():
        remedy = "Make a new cache and give the model the whole prompt."
        raise UsageError(Problem("cache", "swap", "the tokens it was filled with are not known", "input_ids", remedy))
    fresh = _empty(model)
    model(input_ids=tokens, attention_mask=cache.mask, past_key_values=fresh, use_cache=True)
    return _graft(cache, fresh, 0)


def _empty(model: nn.Module) -> DynamicCache:
    config: Any = model.config
    return DynamicCache(config=config)


def _graft(cache: AdapterCache, fresh: DynamicCache, depth: int) -> Swap:
    cache.layers[depth:] = fresh.layers[depth:]
    return Swap(depth, len(fresh.layers) - depth)


def _upper(decoder: nn.Module, name: str, depth: int) -> nn.Module:
    """A shallow copy of a decoder that starts at a layer; the modules are the same ones, hooks and all."""
    upper = copy.copy(decoder)
    upper._modules = dict(decoder._modules)
    layers = list(getattr(decoder, name))
    upper._modules[name] = nn.ModuleList([_Nothing() if i < depth else layer for i, layer in enumerate(layers)])
    if "wpe" in upper._modules:
        upper._modules["wpe"] = _Zero()
    return upper


def require_own(cache: object) -> AdapterCache:
    """The cache, if it is one that a session made."""
    if isinstance(cache, AdapterCache):
        return cache
    remedy = "Make it with session.new_cache() and pass it as past_key_values."
    found = f"a {type(cache).__name__}, which does not know what entered the layers"
    raise UsageError(Problem("cache", "swap", found, "a cache of this session", remedy))
