"""Scores of a hypernetwork's LoRAs, beside the base alone and the LoRAs of other tasks' descriptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import adaptrix
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.training.finetuning import evaluating, target_modules_of
from adaptrix_text_to_lora.training.module_factors import by_path
from adaptrix_text_to_lora.training.tasks import IGNORED, Task

_AT_ONCE = 64  # examples of a pass


@dataclass(frozen=True, slots=True)
class Score:
    """Of answers: ``loss`` in nats a token, the share of ``tokens`` that were the likeliest, and the share of
    ``examples`` of which all were, which is what decoding greedily would write."""

    loss: float
    accuracy: float
    exact: float
    tokens: int
    examples: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores over all tasks: with each task's own descriptions, with those of the next one (None for a single task),
    and of the base alone; ``by_task``: each task's own, in their order."""

    generated: Score
    shuffled: Score | None
    base: Score
    by_task: tuple[Score, ...]


def evaluate(
    hypernetwork: Hypernetwork,
    model: nn.Module,
    tasks: Sequence[Task],
    scale: float,
    advance: Callable[[int], object] = lambda _count: None,
) -> Evaluation:
    """Scores every task under every one of its descriptions; ``advance`` is called after every task.

    The next task is that which follows in the list, the first after the last: no task has its own descriptions in
    the control. Raises :class:`RefusedError` for a model that the hypernetwork does not fit.
    """
    target_modules = target_modules_of(model, hypernetwork)
    own, shuffled, base = list[Tensor](), list[Tensor](), list[Tensor]()
    device = next(hypernetwork.parameters()).device
    with torch.no_grad(), evaluating(model, hypernetwork), adaptrix.attach(model, {}) as session:

        def scored(task: Task, described: Task) -> Tensor:
            total = torch.zeros(5, dtype=torch.float64)
            for embedding in described.embeddings:
                factors = by_path(hypernetwork(embedding[None].float().to(device)), target_modules)
                with session.given(factors, scale):
                    total += _sums(model, task)
            return total

        for index, task in enumerate(tasks):
            own.append(scored(task, task))
            if len(tasks) > 1:
                shuffled.append(scored(task, tasks[(index + 1) % len(tasks)]))
            base.append(_sums(model, task))
            advance(1)
    return Evaluation(
        _score(sum(own, torch.zeros(5))),
        _score(sum(shuffled, torch.zeros(5))) if shuffled else None,
        _score(sum(base, torch.zeros(5))),
        tuple(map(_score, own)),
    )


def _sums(model: nn.Module, task: Task) -> Tensor:
    """Loss, tokens that were right, examples that were, tokens, examples."""
    parts = (_part(model, task.ids[at : at + _AT_ONCE], task.labels[at : at + _AT_ONCE])
             for at in range(0, len(task.ids), _AT_ONCE))  # fmt: skip
    return torch.stack(list(parts)).sum(0)


def _part(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits.float()
    wanted = labels[:, 1:].to(logits.device)
    learned = wanted != IGNORED
    found = logits[:, :-1]
    loss = functional.cross_entropy(found[learned], wanted[learned], reduction="sum")
    right = found.argmax(-1) == wanted
    sums = (loss, right[learned].sum(), (right | ~learned).all(1).sum(), learned.sum(), torch.tensor(len(ids)))
    return torch.stack([each.double().cpu() for each in sums])


def _score(sums: Tensor) -> Score:
    loss, right, exact, tokens, examples = sums.tolist()
    return Score(loss / tokens, right / tokens, exact / examples, int(tokens), int(examples))
