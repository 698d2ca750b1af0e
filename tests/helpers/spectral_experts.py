"""Spectral experts of tiny models, and the same experts multiplied out as the oracle."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.delta import Spectral
from adaptrix.torch_tensor import as_stored

#: family -> modules: Conv1D and fused weights (GPT-2), grouped heads (Llama), fused ones (Phi-3); wide and narrow
MODULES = {
    "gpt2": ("c_attn", "c_fc", "mlp.c_proj"),
    "llama": ("k_proj", "gate_proj", "down_proj"),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
}


def expert(
    model: Any, modules: Sequence[str], cache: SvdCache, *, seed: int = 0, vectors: bool = False, spread: float = 1.0
) -> Adapter:
    """An adapter whose z is far from 1, of every module whose name ends with one of these."""
    rng = np.random.default_rng(seed)
    deltas = {}
    for name, module in model.named_modules():
        if name.endswith(tuple(modules)):
            weight, turned = as_stored(module.weight), type(module).__name__ in ("Conv1D", "Embedding")
            z = (1 + spread * rng.standard_normal(min(weight.shape))).astype(np.float32)
            delta = spectral_delta(z, weight, cache, turned=turned, where=name)
            deltas[Target(name)] = delta if vectors else delta.without_vectors()
    return Adapter(f"expert{seed}", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def changed(adapter: Adapter, change: Mapping[str, object], which: str = "") -> Adapter:
    """The adapter with something else in the deltas of the modules whose path ends so."""
    deltas = {t: replace(d, **change) if t.path.endswith(which) else d for t, d in adapter.deltas.items()}
    return replace(adapter, deltas=MappingProxyType(deltas))


def multiplied_out(model: Any, terms: Sequence[tuple[float, Adapter]], cache: SvdCache) -> Any:
    """A copy of the model with the weighted sum of ΔW, in fp64 and rounded once, in its weights."""
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for weight, adapter in terms:
            for target, delta in adapter.deltas.items():
                module, own = merged.get_submodule(target.path), model.get_submodule(target.path)
                assert isinstance(delta, Spectral)
                dense = torch.from_numpy(weight * with_vectors(delta, own, cache).dense())
                turned = type(module).__name__ == "Conv1D"
                module.weight.copy_(module.weight.double() + (dense.T if turned else dense))
    return merged


def with_vectors(delta: Spectral, module: Any, cache: SvdCache) -> Spectral:
    own = cache.svd(as_stored(module.weight), turned=type(module).__name__ == "Conv1D")
    return replace(delta, U=own.U, Vt=own.Vt)


def as_lora(adapter: Adapter, model: Any, cache: SvdCache) -> Adapter:
    """The same adapter as a LoRA, exactly."""
    found = {t: with_vectors(d, model.get_submodule(t.path), cache).low_rank()[0] for t, d in adapter.deltas.items()}
    return replace(adapter, deltas=MappingProxyType(found))
