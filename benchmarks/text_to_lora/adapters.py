"""LoRAs that are trained in the ordinary way: the library, an oracle for every kept task, one LoRA for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.text_to_lora.plan import RANK, ROLES, SCALE, Plan
from benchmarks.world import lora
from benchmarks.world.examples import examples, loss
from benchmarks.world.lora import Factors
from benchmarks.world.operations import Digits, Task

_RATE, _ROWS = 5e-3, 6


def each(model: nn.Module, tasks: Sequence[Task], digits: Digits, plan: Plan, seed: int) -> Factors:
    """A LoRA for every task, trained on that task alone; all start from the same A, so that their mean means much."""
    generator = torch.Generator().manual_seed(seed)
    start = lora.fresh(model, ROLES, 1, RANK, generator)
    leaves = {
        name: tuple(nn.Parameter(factor.detach().repeat(len(tasks), 1, 1)) for factor in pair)
        for name, pair in start.items()
    }
    every = examples(tasks, digits)

    def drawn() -> Tensor:
        return every[:, torch.randint(len(digits), (_ROWS,), generator=generator)].flatten(0, 1)

    return _trained(model, leaves, drawn, plan.library, _RATE)


def together(model: nn.Module, tasks: Sequence[Task], digits: Digits, plan: Plan, seed: int) -> Factors:
    """One LoRA for all tasks, in as many steps as the hypernetwork has, on as many examples of as many tasks."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {name: tuple(pair) for name, pair in lora.fresh(model, ROLES, 1, RANK, generator).items()}
    every = examples(tasks, digits)

    def drawn() -> Tensor:
        chosen = torch.randperm(len(tasks), generator=generator)[: plan.tasks]
        which = torch.randint(len(digits), (len(chosen), plan.rows), generator=generator)
        return every[chosen[:, None], which].flatten(0, 1)

    return _trained(model, leaves, drawn, plan.generator, plan.rate)


def _trained(model: nn.Module, leaves: Factors, drawn: Callable[[], Tensor], steps: int, rate: float) -> Factors:
    optimiser = torch.optim.AdamW([factor for pair in leaves.values() for factor in pair], lr=rate, fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, 10 * (step + 1) / steps, 1.02 - step / steps)
        with lora.acting(model, leaves, SCALE):
            value = loss(model, drawn())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return {name: (A.detach(), B.detach()) for name, (A, B) in leaves.items()}
