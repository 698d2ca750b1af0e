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
from adaptrix.delta import Delta, LowRank
from adaptrix.tensor import Tensor


def as_products(adapter: Adapter, modules: Mapping[str, nn.Module]) -> Adapter:
    """The adapter with every such delta as one of ΔW ``[out, in]``. ``modules``: the model's, by path."""
    names = adapter.provenance.config.get("target_parameters") or ()
    weights = [name for name in names if name.rpartition(".")[2] == "weight"]
    turned = {
        target: _turned(delta, embedding=isinstance(modules[target.path], nn.Embedding))
        for target, delta in (adapter.deltas.items() if weights else ())
        if isinstance(modules.get(target.path), (Conv1D, nn.Embedding))
        and any(suffix_match(name, f"{target.path}.weight") for name in weights)
    }
    if not turned:
        return adapter
    return replace(adapter, deltas=MappingProxyType({**adapter.deltas, **turned}), altered=True)


def _turned(delta: Delta, *, embedding: bool) -> Delta:
    """The same change with its factors' parts exchanged: (B·A)ᵀ = Aᵀ·Bᵀ. What is a module's already stays."""
    if not isinstance(delta, LowRank) or delta.embedding or delta.experts is not None:
        return delta
    A, B = (Tensor.of(np.ascontiguousarray(factor.numpy().T)) for factor in (delta.B, delta.A))
    return replace(delta, A=A, B=B, embedding=embedding)
