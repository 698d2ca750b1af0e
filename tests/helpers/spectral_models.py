"""Spectral adapters on the tiny models of :mod:`tests.helpers.families`, with random z."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.delta import Spectral
from adaptrix.formats import safetensors_file
from tests.helpers.families import architecture, tiny_model


def saved_base(folder: Path, family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A tiny model as transformers saves it."""
    tiny_model(family, seed=seed).to(dtype).save_pretrained(folder)
    return folder


def spectral_adapter(base: Path, family: str, cache: SvdCache, *, seed: int = 0, spread: float = 0.3) -> Adapter:
    """A delta on every linear module in the layers of a saved base, with its U and V."""
    rng = np.random.default_rng(seed)
    roles = architecture(family).roles
    deltas: dict[Target, Spectral] = {}
    for name, tensor in safetensors_file.read(base / "model.safetensors")[0].items():
        path = name.removesuffix(".weight")
        site = architecture(family).locate(path) if name.endswith(".weight") else None
        if site is None or site.layer is None or roles[site.role].orientation not in ("linear", "conv1d"):
            continue
        z = (1 + spread * rng.standard_normal(min(tensor.shape))).astype(np.float32)
        turned = roles[site.role].orientation == "conv1d"
        deltas[Target(path)] = spectral_delta(z, tensor, cache, turned=turned)
    return adapter(deltas)


def adapter(deltas: dict[Target, Any], name: str = "expert") -> Adapter:
    """An adapter of some deltas, made in memory."""
    return Adapter(name, MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))
