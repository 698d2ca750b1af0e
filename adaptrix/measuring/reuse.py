"""How much of a prompt's prefill a swap to a plan reuses: measured, by swapping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.adapter import Adapter
from adaptrix.attaching import attach

_PROMPT = 64


@torch.no_grad()
def reused(model: nn.Module, adapter: Adapter, ids: Tensor) -> float:
    """The share of the layers of a cache that a swap from the base to the adapter keeps.

    The adapter is alone on the model, for a cache keeps what enters the lowest layer that any adapter changes.
    ``ids``: a text ``[n]``, of which the beginning is the prompt.
    """
    device: Any = model.device
    with attach(model, {"plan": adapter}) as session:
        cache = session.new_cache()
        model(input_ids=ids[None, :_PROMPT].to(device), past_key_values=cache, use_cache=True)
        done = session.swap("plan", cache)
    return done.kept / (done.kept + done.recomputed)
