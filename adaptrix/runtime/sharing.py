"""One prompt for several adapters: the layers under all of them are run once.

The first choice runs the whole model. Every other one gets its lower layers' keys and values, and runs the
upper layers on what entered them, as a swap does (:mod:`adaptrix.runtime.swapping`); n choices over L layers, the
first injected one being L0, cost L + (n - 1)·(L - L0) layers instead of n·L.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.cache import AdapterCache
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.selection import Selection
from adaptrix.runtime.swapping import layers_of, run_upper, upper_half, why_whole


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prefill:
    """A prompt under one choice: its cache, and the logits ``[rows, vocab]`` of the token that follows it.

    ``kept`` layers were run for another choice already, ``recomputed`` for this one; ``reason`` says why.
    """

    cache: AdapterCache
    logits: Tensor
    kept: int
    recomputed: int
    reason: str

    def __repr__(self) -> str:
        """Counts: the cache and the logits are large tensors."""
        return f"<Prefill: logits {list(self.logits.shape)}, {self.kept} layers kept, {self.recomputed} recomputed>"


@torch.no_grad()
def prefill(hooks: Hooks, inputs: Mapping[str, Tensor], selections: Sequence[Selection]) -> list[Prefill]:
    """The prompt under each selection, in order. Raises :class:`UsageError`, and then nothing has changed."""
    _require_causal(hooks.model)
    given = _placed(hooks.model, inputs)
    first, *others = selections
    found, lowest = layers_of(hooks.model), min(selection.first_layer for selection in selections)
    activated = any(selection.activated for selection in selections)
    if found is None or not lowest or activated:
        reason = why_whole(hooks.model) or "an adapter changes the first layer, or what enters it"
        reason = "an activated LoRA acts from its invocation tokens on" if activated else reason
        return [_whole(hooks, given, selection, lowest, reason) for selection in selections]
    depth = int(min(lowest, len(getattr(*found)) - 1))  # the logits take what leaves the last layer, changed or not
    head = _whole(hooks, given, first, depth, f"the layers under {depth} are run here for all")
    return [head, *(_upper(hooks, found, head.cache, selection) for selection in others)]


def _whole(hooks: Hooks, given: Mapping[str, Any], selection: Selection, depth: float, reason: str) -> Prefill:
    """The prompt through every layer."""
    cache = hooks.new_cache(depth)
    with hooks.choosing(selection):
        answer = hooks.model(**given, **_last(hooks.model), past_key_values=cache, use_cache=True, return_dict=True)
    return Prefill(cache, answer.logits[:, -1], 0, len(cache.layers), reason)


def _upper(hooks: Hooks, found: tuple[nn.Module, str], source: AdapterCache, selection: Selection) -> Prefill:
    """The prompt through the layers that the selection may change; those below are the source's."""
    model, cache = hooks.model, source.fork()
    filled, depth, layers = cache.filled(), cache.depth, len(cache.layers)
    around = _around(model, found[0], upper_half(*found, depth, filled))
    with hooks.choosing(selection):
        answer = run_upper(around, cache, filled, selection, return_dict=True, **_last(model))
    return Prefill(cache, answer.logits[:, -1], depth, layers - depth, f"no choice changes a layer under {depth}")


def _around(model: nn.Module, decoder: nn.Module, other: nn.Module) -> nn.Module:
    """A shallow copy of a model with another decoder in it."""
    around = copy.copy(model)
    around._modules = {name: other if child is decoder else child for name, child in model._modules.items()}
    return around


def _last(model: nn.Module) -> dict[str, int]:
    """The option that spares the head all tokens but the last, where the model has it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}


def _placed(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs, with the positions that ``generate`` would count: padding has none."""
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        remedy = 'tokenizer(text, return_tensors="pt") makes them.'
        raise UsageError(Problem("input", "prefill_shared", "no input_ids", "a tensor of rows and tokens", remedy))
    mask = given.get("attention_mask")
    if mask is None:
        return given
    if not bool((mask[:, -1] != 0).all()):
        remedy = 'tokenizer.padding_side = "left" puts the padding before the text.'
        raise UsageError(Problem("input", "attention_mask", "padding at the end of a row", "text there", remedy))
    if "position_ids" in signature(model.forward).parameters:
        given.setdefault("position_ids", (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0))
    return given


def _require_causal(model: nn.Module) -> None:
    can: Any = getattr(model, "can_generate", None)
    if can is None or not can():
        found = "a model that does not generate, so no token follows a prompt"
        raise UsageError(Problem("model-unsupported", type(model).__name__, found, "a causal language model"))
