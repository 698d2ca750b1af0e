"""LoRAs on the matrices that the experts change, trained by the experts' own steps on the same examples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from adaptrix_transformer2.train import Example, Policy, Reward, TrainingSettings
from adaptrix_transformer2.train.policy_gradient import Rewarded
from adaptrix_transformer2.train.run import Run
from adaptrix_transformer2.train.supervised import Supervised
from torch import Tensor, nn

from adaptrix.progress import uncounted


class Lora:
    """ΔW = scale·B·A, A as peft begins it and B = 0; what a training asks of an expert, it has."""

    def __init__(self, model: nn.Module, paths: Collection[str], rank: int, seed: int, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._model, self._paths, self._scale = model, tuple(paths), scale
        self.leaves = list[nn.Parameter]()
        for path in self._paths:
            out, inp = model.get_submodule(path).weight.shape
            A = (torch.rand(rank, inp, generator=generator) * 2 - 1) / sqrt(inp)
            self.leaves += [nn.Parameter(A), nn.Parameter(torch.zeros(out, rank))]

    @property
    def numbers(self) -> int:
        """How many are trained."""
        return sum(leaf.numel() for leaf in self.leaves)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """It acts, with the numbers that it has."""
        handles = []
        for path, A, B in zip(self._paths, self.leaves[::2], self.leaves[1::2], strict=True):
            handles.append(self._model.get_submodule(path).register_forward_hook(_adding(A, B, self._scale)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def pull(self) -> None:
        """Nothing: a pass leaves its gradients at the leaves themselves."""

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Takes a step of an optimiser of the leaves."""
        optimiser.step()

    @torch.no_grad()
    def put(self, numbers: Sequence[Tensor]) -> None:
        """Gives the leaves these numbers."""
        for leaf, number in zip(self.leaves, numbers, strict=True):
            leaf.copy_(number)


def lora_sft(
    model: Any, lora: Lora, examples: Sequence[Example], held: Sequence[Example], settings: TrainingSettings
) -> Lora:
    """Trains it on answers."""
    task = Supervised(model, lora, tuple(examples), settings, ())  # type: ignore[arg-type]
    Run(lora, settings, task.step, task.scorer(held) if held else None).run(None, uncounted)  # type: ignore[arg-type]
    return lora


def lora_reinforce(
    model: Any,
    lora: Lora,
    examples: Sequence[Example],
    held: Sequence[Example],
    reward: Reward,
    settings: TrainingSettings,
    policy: Policy,
) -> Lora:
    """Trains it on rewards."""
    task = Rewarded(model, lora, tuple(examples), reward, settings, policy, ())  # type: ignore[arg-type]
    scorer = task.scorer(held) if held else None
    Run(lora, settings, task.step, scorer, task.enough).run(None, uncounted)  # type: ignore[arg-type]
    return lora


def _adding(A: Tensor, B: Tensor, scale: float) -> Any:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + scale * (inputs[0] @ A.T @ B.T)

    return hook
