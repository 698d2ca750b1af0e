"""Deltas on a module's weight that are given as the weight is stored.

peft's ``target_parameters`` may name the ``weight`` of a module. Its factors then describe the change to the tensor as
it lies there, which for a Conv1D and an embedding is the transpose of ΔW ``[out, in]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from torch import nn
from transformers.pytorch_utils import Conv1D

from adaptrix.adapter import Adapter
from adaptrix.architecture.patterns import suffix_match
from adaptrix.binding.stored_weights import stored_weights
from adaptrix.delta import Delta, LowRank
from adaptrix.tensor import Tensor


def as_products(adapter: Adapter, modules: Mapping[str, nn.Module]) -> Adapter:
    """The adapter with every such delta as one of ΔW ``[out, in]``. ``modules``: the model's, by path.

    Its config no longer lists those weights as parameters: written, they are modules to peft.
    """
    weights = stored_weights(adapter)
    named = {
        target: [name for name in weights if suffix_match(name, f"{target.path}.weight")]
        for target in (adapter.deltas if weights else ())
    }
    turned = {
        target: _turned(adapter.deltas[target], embedding=isinstance(modules[target.path], nn.Embedding))
        for target, found in named.items()
        if found and isinstance(modules.get(target.path), (Conv1D, nn.Embedding))
    }
    if not turned:
        return adapter
    kept = {name for target, found in named.items() if target not in turned for name in found}
    kept |= set(adapter.provenance.config["target_parameters"]) - set(weights)
    config = MappingProxyType({**adapter.provenance.config, "target_parameters": sorted(kept) or None})
    deltas = MappingProxyType({**adapter.deltas, **turned})
    return replace(adapter, deltas=deltas, provenance=replace(adapter.provenance, config=config), altered=True)


def _turned(delta: Delta, *, embedding: bool) -> Delta:
    """The same change with its factors' parts exchanged: (B·A)ᵀ = Aᵀ·Bᵀ. What is a module's already stays."""
    if not isinstance(delta, LowRank) or delta.embedding or delta.experts is not None:
        return delta
    A, B = (Tensor.of(np.ascontiguousarray(factor.numpy().T)) for factor in (delta.B, delta.A))
    return replace(delta, A=A, B=B, embedding=embedding)
