"""Hypernetworks, trained by the plugin's own functions: through the base, or on the library's LoRAs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.shape import Module, Output, Shape
from adaptrix_text_to_lora.training import Library, Objective, Recipe, fine_tune, reconstruct
from adaptrix_text_to_lora.training import Task as Learned
from torch import Tensor, nn

from benchmarks.text_to_lora.plan import RANK, ROLES, SCALE, Plan
from benchmarks.world import lora
from benchmarks.world.examples import examples
from benchmarks.world.lora import Factors
from benchmarks.world.operations import Digits, Task
from benchmarks.world.vocabulary import PROMPT

_IGNORED = -100


def fine_tuned(
    model: nn.Module, tasks: Sequence[Task], texts: Tensor, digits: Digits, plan: Plan, seed: int
) -> Hypernetwork:
    """Trained end to end. ``texts`` ``[tasks, descriptions, E]``: each step draws one of a task's own."""
    network = _blank(model, "added", texts.shape[-1], seed)
    ids = examples(tasks, digits)
    labels = ids.clone()
    labels[..., :PROMPT] = _IGNORED
    learned = [Learned(*each) for each in zip(texts, ids, labels, strict=True)]
    recipe = Recipe(plan.generator, plan.rate, plan.tasks, plan.rows, decay=1.0, seed=seed)
    fine_tune(network, model, learned, Objective(SCALE, smoothing=0.05, penalty=1.0), recipe)
    return network


def reconstructed(model: nn.Module, library: Factors, texts: Tensor, plan: Plan, seed: int) -> Hypernetwork:
    """Trained to give the library's factors, in their canonical form."""
    network = _blank(model, "z-score", texts.shape[-1], seed)
    names = ROLES.split()
    layers = range(model.config.num_hidden_layers)
    stacked = {
        name: tuple(torch.stack([library[f"{layer}.{name}"][side] for layer in layers], 1) for side in (0, 1))
        for name in names
    }
    targets = Library.of_factors(list(texts), stacked)
    reconstruct(network, targets, Recipe(plan.reconstruction, 1e-3, tasks=len(texts), seed=seed))
    return network


@torch.no_grad()
def generated(network: Hypernetwork, embeddings: Tensor) -> Factors:
    """The factors for ``embeddings`` ``[N, E]``, by layer and role."""
    found = network.eval()(embeddings)
    layers = range(network.shape.layers)
    return {f"{layer}.{name}": (A[:, layer], B[:, layer]) for name, (A, B) in found.items() for layer in layers}


def _blank(model: nn.Module, output: Output, width: int, seed: int) -> Hypernetwork:
    """An L, smaller than the published one, as the base is."""
    sites = lora.sites(model, ROLES)
    modules = tuple(
        Module(role, sites[f"0.{role}"].in_features, sites[f"0.{role}"].out_features) for role in ROLES.split()
    )
    shape = Shape("L", modules, model.config.num_hidden_layers, RANK, width, latent=64, head_in=256, output=output)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Hypernetwork(shape)
