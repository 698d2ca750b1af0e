"""Training a hypernetwork through the base: its LoRAs act on the rows of a batch, and gradients come back to it.

The loss (arXiv 2506.06105, section 3.2, and its code): cross-entropy of the answers' tokens with label smoothing, plus
a small penalty on the size of the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import adaptrix
from adaptrix_text_to_lora.hypernetwork import Factors, Hypernetwork
from adaptrix_text_to_lora.targets import Base, TargetModule, require_fit
from adaptrix_text_to_lora.training.loop import QUIET, Recipe, State, Watch, run
from adaptrix_text_to_lora.training.module_factors import by_path
from adaptrix_text_to_lora.training.tasks import IGNORED, Batch, Examples, Task

#: the published rate
FINE_TUNING = Recipe(steps=10_000, rate=2.5e-5)


@dataclass(frozen=True, slots=True)
class Objective:
    """``scale``: of ΔW = scale · B·A, alpha/√r under rsLoRA; ``smoothing`` of the labels; ``penalty`` on the mean
    squares of A and B, summed over the modules."""

    scale: float
    smoothing: float = 0.1
    penalty: float = 1e-3


def fine_tune(
    hypernetwork: Hypernetwork,
    model: nn.Module,
    tasks: Sequence[Task],
    objective: Objective,
    recipe: Recipe = FINE_TUNING,
    *,
    state: State | None = None,
    watch: Watch = QUIET,
) -> Tensor:
    """Trains the hypernetwork in place; returns the curve ``[steps, 3]``: loss, rate, norm of the gradient.

    The model is a causal one of transformers, of a family of the registry; it is frozen meanwhile, in evaluation mode,
    and as it was afterwards. Raises :class:`RefusedError` for one that the hypernetwork does not fit, and where it
    diverges.
    """
    target_modules = target_modules_of(model, hypernetwork)
    examples = Examples(tasks, next(hypernetwork.parameters()).device)
    with evaluating(model), adaptrix.attach(model, {}) as session:

        def loss() -> Tensor:
            batch = examples.draw(recipe.tasks, recipe.rows)
            factors = hypernetwork(batch.embeddings)
            with session.given(by_path(factors, target_modules), objective.scale):
                logits = model(input_ids=batch.ids, use_cache=False).logits
            return _cross_entropy(logits, batch, objective.smoothing) + objective.penalty * _size(factors)

        return run(hypernetwork, loss, recipe, state, watch)


def target_modules_of(model: nn.Module, hypernetwork: Hypernetwork) -> tuple[TargetModule, ...]:
    """The modules of a live model that a hypernetwork makes deltas for. Raises :class:`RefusedError` where they do
    not fit."""
    base = Base.of_model(model)
    target_modules = base.find_modules(module.name for module in hypernetwork.shape.modules)
    require_fit(hypernetwork.shape, base, target_modules)
    return target_modules


def _cross_entropy(logits: Tensor, batch: Batch, smoothing: float) -> Tensor:
    """Of the next token, over all that are to be learned."""
    learned = batch.labels[:, 1:] != IGNORED
    found, wanted = logits[:, :-1][learned], batch.labels[:, 1:][learned]
    return functional.cross_entropy(found.float(), wanted, label_smoothing=smoothing)


def _size(factors: Factors) -> Tensor:
    """Σ (mean A² + mean B²) over the modules."""
    return torch.stack([factor.square().mean() for pair in factors.values() for factor in pair]).sum()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """A block in which models are in evaluation mode; afterwards every module is in its own again."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
