"""The base: that of the world, taught to read sentences a little, and to say which of some tasks one is about.

Half of the texts are the world's own, three eighths are examples told in a sentence, and one eighth are questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from adaptrix_transformer2.dispatch import Question
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from benchmarks.transformer2.plan import Plan
from benchmarks.transformer2.tasks import Tasks, example, name_of
from benchmarks.world.base import IGNORED, Pretraining, base, texts_of
from benchmarks.world.descriptions import SEEN
from benchmarks.world.vocabulary import END, PAD, padded, vocabulary

_OWN, _TOLD, _ASKED = 32, 24, 8  # texts of a step
_RATE = 1e-3


def told_base(tasks: Tasks, question: Question, plan: Plan, seed: int, world: Path) -> LlamaForCausalLM:
    """The base that experts, LoRAs and classifier start from, in evaluation mode."""
    model = base(seed, world, plan.base)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01, fused=True)
    own = texts_of(np.random.default_rng(seed + 1000), Pretraining(texts=_OWN))
    told = _told(tasks, question, Random(f"told {seed}"))
    for _ in range(plan.told):
        loss = _loss(model, *next(own)) * _OWN / (_OWN + _TOLD + _ASKED)
        loss = loss + _loss(model, *next(told)) * (1 - _OWN / (_OWN + _TOLD + _ASKED))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.requires_grad_(False).eval()


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    states = model.model(input_ids=ids).last_hidden_state[:, :-1]
    learned = labels[:, 1:] != IGNORED
    return functional.cross_entropy(model.lm_head(states[learned]), labels[:, 1:][learned])


def _told(tasks: Tasks, question: Question, rng: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of texts, and as labels the answers in them. Every family is drawn as often as it has tasks."""
    end = vocabulary()[END]
    while True:
        texts, answers = [], []
        for at in range(_TOLD + _ASKED):
            task = rng.choice(tasks.library if at < _TOLD or rng.random() < 0.5 else tuple(tasks.own.values()))
            drawn = example(task, tasks.learned[rng.randrange(len(tasks.learned))], SEEN, rng)
            answer = (*drawn.response, end) if at < _TOLD else (*question.ask, *question.names[name_of(tasks, task)])
            texts.append([*drawn.prompt, *answer])
            answers.append(len(drawn.prompt) + (0 if at < _TOLD else len(question.ask)))
        ids = padded(texts)
        learned = (torch.arange(ids.shape[1]) >= torch.tensor(answers)[:, None]) & (ids != vocabulary()[PAD])
        yield ids, ids.masked_fill(~learned, IGNORED)
