"""How often the answers are right, by each way to come by an adapter, on one set of tasks and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from torch import Tensor, nn

from benchmarks.text_to_lora import comparators
from benchmarks.text_to_lora.embedding import Embedding
from benchmarks.text_to_lora.generators import generated
from benchmarks.text_to_lora.plan import SCALE
from benchmarks.world.descriptions import describe
from benchmarks.world.examples import examples, right
from benchmarks.world.lora import Factors, acting
from benchmarks.world.operations import Digits, Task
from benchmarks.world.vocabulary import PROMPT, notation, tokens

#: from the embeddings of a set's descriptions, ``[tasks, E]``, to an adapter for each of its tasks
Maker = Callable[[Tensor], Factors]


@dataclass(frozen=True)
class Learned:
    """All that was trained in a seed; ``known``: the library's descriptions ``[LoRAs, ways, E]``."""

    embedding: Embedding
    known: Tensor
    library: Factors
    multitask: Factors
    fine_tuned: Hypernetwork
    shuffled: Hypernetwork
    reconstructed: Hypernetwork


@dataclass(frozen=True)
class Measured:
    """A set: its tasks, the ways in which they are described, and the oracle's LoRAs."""

    tasks: tuple[Task, ...]
    ways: Sequence[int]
    oracle: Factors


def measured(model: nn.Module, learned: Learned, on: Measured, digits: Digits, seed: int) -> dict[str, float]:
    """The share of right answers by name, exact to the last digit, over all tasks, ways and inputs of a set."""
    ids, asked = examples(on.tasks, digits), learned.embedding(on.tasks, on.ways)

    def share(make: Maker, texts: Tensor = asked) -> float:
        found = [_right(model, ids, make(texts[:, way])) for way in range(texts.shape[1])]
        return float(torch.stack(found).mean())

    once = asked[:, :1]
    count = len(on.tasks)
    found = {
        "base": float(right(model, ids.flatten(0, 1)).float().mean()),
        "description in prompt": _told(model, ids, [describe(task, on.ways[0]) for task in on.tasks]),
        "notation in prompt": _told(model, ids, [notation(task) for task in on.tasks]),
        "mean ΔW": share(lambda _: comparators.mean(learned.library, count), once),
        "multi-task LoRA": share(lambda _: _repeated(learned.multitask, count), once),
        "nearest LoRA": share(lambda texts: comparators.nearest(learned.library, learned.known, texts)),
        "softmax mixture": max(share(make) for make in _mixtures(learned)),
        "ridge": max(share(make) for make in _regressions(learned)),
        "T2L, reconstruction": share(lambda texts: generated(learned.reconstructed, texts)),
        "T2L, fine-tuned": share(lambda texts: generated(learned.fine_tuned, texts)),
        "oracle": share(lambda _: on.oracle, once),
    }
    return found | {name: share(*control) for name, control in _controls(learned, asked, seed)}


def _mixtures(learned: Learned) -> Iterator[Maker]:
    for value in comparators.TEMPERATURES:
        yield lambda texts, value=value: comparators.mixture(learned.library, learned.known, texts, value)


def _regressions(learned: Learned) -> Iterator[Maker]:
    for value in comparators.PENALTIES:
        yield lambda texts, value=value: comparators.ridge(learned.library, learned.known, texts, value)


def _controls(learned: Learned, asked: Tensor, seed: int) -> Iterator[tuple[str, tuple[Maker, Tensor]]]:
    """Descriptions that say nothing of the task, in training or afterwards."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(asked.shape, generator=generator)
    others = asked.roll(int(torch.randint(1, len(asked), (), generator=generator)), 0)
    yield "mismatched", (lambda texts: generated(learned.fine_tuned, texts), others)
    yield (
        "random",
        (
            lambda texts: generated(learned.fine_tuned, texts),
            noise / noise.norm(dim=-1, keepdim=True) * asked.shape[-1] ** 0.5,
        ),
    )
    yield "shuffled", (lambda texts: generated(learned.shuffled, texts), asked)


def _right(model: nn.Module, ids: Tensor, factors: Factors) -> Tensor:
    """``ids`` ``[tasks, N, ROW]``, the i-th task's with the i-th adapter."""
    with acting(model, factors, SCALE):
        return right(model, ids.flatten(0, 1)).float()


def _told(model: nn.Module, ids: Tensor, texts: Sequence[str]) -> float:
    """With a text after the start of every prompt."""
    found = []
    for text, rows in zip(texts, ids, strict=True):
        told = torch.tensor(tokens(text)).expand(len(rows), -1)
        found.append(right(model, torch.cat([rows[:, :1], told, rows[:, 1:]], 1), PROMPT + told.shape[1]).float())
    return float(torch.cat(found).mean())


def _repeated(factors: Factors, count: int) -> Factors:
    return {name: (A.expand(count, -1, -1), B.expand(count, -1, -1)) for name, (A, B) in factors.items()}
