"""Inputs to train adapters on and inputs to measure them on, with nothing in common; and how well a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.world.operations import LENGTH, MODULUS, Digits, Task
from benchmarks.world.vocabulary import PROMPT, rows

#: of the 625 inputs, those that no adapter learns from
MEASURED = 32


def inputs(seed: int) -> tuple[Digits, Digits]:
    """All lists of digits, in a seed's order: those to learn from, and those to measure on."""
    every = np.array(list(product(range(MODULUS), repeat=LENGTH)))
    mixed = np.random.default_rng(seed).permutation(every)
    return mixed[MEASURED:], mixed[:MEASURED]


def examples(tasks: Sequence[Task], digits: Digits) -> Tensor:
    """``[tasks, N, ROW]``."""
    return torch.stack([rows(task, digits) for task in tasks])


def answers(model: nn.Module, ids: Tensor, prompt: int = PROMPT) -> tuple[Tensor, Tensor]:
    """Logits ``[N, LENGTH, V]`` for the answers in ``ids`` ``[N, prompt + LENGTH]``, and the tokens there."""
    states = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[:, prompt - 1 :]
    return model.lm_head(states), ids[:, prompt:]


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of the answers."""
    logits, wanted = answers(model, ids)
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


@torch.inference_mode()
def right(model: nn.Module, ids: Tensor, prompt: int = PROMPT) -> Tensor:
    """``[N]``: whether the model's own answer, its likeliest token one by one, is the right one.

    One pass tells: if every token is the likeliest after the right ones before it, these are what the model says.
    """
    logits, wanted = answers(model, ids, prompt)
    return (logits.argmax(-1) == wanted).all(1)
