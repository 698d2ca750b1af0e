"""Many LoRAs on one base at once: each owns a block of the rows of a batch.

A product of a block of rows with the factors of its LoRA is one batched matrix product, so that a hundred adapters
train nearly as fast as one does on as many rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor, nn

#: "layer.role" -> (A ``[N, r, in]``, B ``[N, out, r]``)
Factors = Mapping[str, tuple[Tensor, Tensor]]
ROLES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
ROLES |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def sites(model: nn.Module, roles: str) -> dict[str, nn.Linear]:
    """The modules that get deltas, by layer and role; ``roles`` as "q v"."""
    return {
        f"{index}.{role}": layer.get_submodule(ROLES[role])
        for index, layer in enumerate(model.model.layers)
        for role in roles.split()
    }


def fresh(model: nn.Module, roles: str, count: int, rank: int, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Leaves of ``count`` new LoRAs: A as peft starts it, U(−1/√in, 1/√in), and B = 0."""
    leaves = {}
    for name, module in sites(model, roles).items():
        A = (torch.rand(count, rank, module.in_features, generator=generator) * 2 - 1) / sqrt(module.in_features)
        leaves[name] = [nn.Parameter(A), nn.Parameter(torch.zeros(count, module.out_features, rank))]
    return leaves


@contextmanager
def acting(model: nn.Module, factors: Factors, scale: float) -> Iterator[None]:
    """Within it, the N-th part of a batch's rows goes through the N-th LoRA: y = Wx + scale·B(Ax)."""
    handles = []
    for name, (A, B) in factors.items():
        index, role = name.split(".")
        module = model.model.layers[int(index)].get_submodule(ROLES[role])
        handles.append(module.register_forward_hook(_adding(A, B, scale)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(A: Tensor, B: Tensor, scale: float):
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        blocks = inputs[0].reshape(len(A), -1, inputs[0].shape[-1])
        return output + scale * (blocks @ A.mT @ B.mT).reshape(output.shape)

    return hook
