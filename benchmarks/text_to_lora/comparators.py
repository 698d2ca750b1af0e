"""What else could be made of a library and the embedding of a sentence: means, neighbours, mixtures, a regression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.world.lora import Factors

#: tried for the mixture and the regression; the best on what is measured is taken, which flatters them
TEMPERATURES, PENALTIES = (0.03, 0.1), (10.0, 1000.0)


def mean(library: Factors, count: int) -> Factors:
    """The library's mean ΔW, the same for all."""
    size = len(next(iter(library.values()))[0])
    return mixed(library, torch.full((count, size), 1 / size))


def nearest(library: Factors, known: Tensor, asked: Tensor) -> Factors:
    """The LoRA of the task that has the description most like the one asked for. ``known`` ``[LoRAs, ways, E]``."""
    likeness = _likeness(known.flatten(0, 1), asked).argmax(1) // known.shape[1]
    return {name: (A[likeness], B[likeness]) for name, (A, B) in library.items()}


def mixture(library: Factors, known: Tensor, asked: Tensor, temperature: float) -> Factors:
    """ΔW of all, weighed by a softmax over how much the tasks' descriptions are like the one asked for."""
    likeness = _likeness(known.flatten(0, 1), asked).unflatten(1, known.shape[:2]).amax(-1)
    return mixed(library, (likeness / temperature).softmax(1))


def ridge(library: Factors, known: Tensor, asked: Tensor, penalty: float) -> Factors:
    """ΔW as a linear function of the embedding, fitted to every description of every task.

    It is a weighted sum of the library's ΔW, with a constant: w = (X·Xᵀ + λ·1)⁻¹, in the space of the descriptions.
    """
    tasks, ways = known.shape[:2]
    X = known.flatten(0, 1).double()
    centre = X.mean(0)
    X, asked = X - centre, asked.double() - centre
    weights = torch.linalg.solve(X @ X.T + penalty * torch.eye(len(X)).double(), X @ asked.T).T
    summed = weights.unflatten(1, (tasks, ways)).sum(-1)
    return mixed(library, (summed + (1 - summed.sum(1, keepdim=True)) / tasks).float())


def mixed(library: Factors, weights: Tensor) -> Factors:
    """Σ wᵢ·ΔWᵢ for each row of ``weights`` ``[N, LoRAs]``, as factors of full rank."""
    return {name: _dense(torch.einsum("nl,lor,lri->noi", weights, B, A)) for name, (A, B) in library.items()}


def _dense(delta: Tensor) -> tuple[Tensor, Tensor]:
    return torch.eye(delta.shape[-1]).expand(len(delta), -1, -1), delta


def _likeness(known: Tensor, asked: Tensor) -> Tensor:
    """Cosines ``[asked, known]``."""
    return functional.normalize(asked, dim=-1) @ functional.normalize(known, dim=-1).T
