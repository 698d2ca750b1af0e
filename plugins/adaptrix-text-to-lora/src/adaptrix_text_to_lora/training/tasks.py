"""Tasks to train a hypernetwork on: descriptions, and examples of prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptrix.extend import refuse

#: the label of a token that is not to be learned
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Task:
    """``embeddings`` ``[descriptions, E]`` as the hypernetwork reads them; ``ids``, ``labels`` ``[examples, tokens]``.

    A label is the token itself where the answer is, and :data:`IGNORED` elsewhere, for the prompt and what fills up a
    shorter example on its right; labels are not shifted.
    """

    embeddings: Tensor
    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """``embeddings`` ``[N, E]``, and the examples of the N tasks one after another, ``[N · rows, tokens]``."""

    embeddings: Tensor
    ids: Tensor
    labels: Tensor


class Described:
    """The descriptions of many tasks side by side. All that is drawn comes from torch's generator of the CPU."""

    def __init__(self, embeddings: Sequence[Tensor], device: torch.device) -> None:
        if not embeddings or any(rows.dim() != 2 or not len(rows) for rows in embeddings):
            raise refuse("option", "embeddings", "no tasks, or one without a description", "[descriptions, E] for each")
        self._all = torch.cat([rows.float() for rows in embeddings]).to(device)
        self._counts, self._starts = _offsets([len(rows) for rows in embeddings])

    def choose(self, count: int) -> Tensor:
        """So many tasks, each at most once; all of them where there are no more."""
        return torch.randperm(len(self._counts))[:count]

    def draw(self, chosen: Tensor) -> Tensor:
        """A description of each, ``[N, E]``."""
        return self._all[_picked(self._starts[chosen], self._counts[chosen])]


class Examples:
    """The tasks' descriptions and examples, ready to be drawn from. Raises :class:`RefusedError`."""

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        _require_examples(tasks)
        self._texts = Described([task.embeddings for task in tasks], device)
        longest = max(task.ids.shape[1] for task in tasks)
        self._ids = torch.cat([_widened(task.ids, longest, 0) for task in tasks]).to(device)
        self._labels = torch.cat([_widened(task.labels, longest, IGNORED) for task in tasks]).to(device)
        positions = torch.arange(1, longest + 1)
        self._lengths = ((self._labels.cpu() != IGNORED) * positions).amax(1)
        self._counts, self._starts = _offsets([len(task.ids) for task in tasks])

    def draw(self, tasks: int, rows: int) -> Batch:
        """``rows`` examples of each of ``tasks`` tasks, cut behind the last token that is learned."""
        chosen = self._texts.choose(tasks)
        each = chosen.repeat_interleave(rows)
        picked = _picked(self._starts[each], self._counts[each])
        length = int(self._lengths[picked].max())
        return Batch(self._texts.draw(chosen), self._ids[picked, :length], self._labels[picked, :length])


def _require_examples(tasks: Sequence[Task]) -> None:
    for index, task in enumerate(tasks):
        if task.ids.dim() != 2 or task.ids.shape != task.labels.shape or not len(task.ids):
            found = f"ids {list(task.ids.shape)} and labels {list(task.labels.shape)}"
            raise refuse("option", f"task {index}", found, "both [examples, tokens]")
        if not bool((task.labels[:, 1:] != IGNORED).any(1).all()):
            raise refuse("option", f"task {index}", "an example without an answer", "a label after the first token")


def _offsets(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(counts)
    return sizes, sizes.cumsum(0) - sizes


def _picked(starts: Tensor, counts: Tensor) -> Tensor:
    """One of each stretch, all alike likely."""
    return starts + (torch.rand(len(starts), dtype=torch.float64) * counts).long()


def _widened(tokens: Tensor, length: int, filling: int) -> Tensor:
    return torch.nn.functional.pad(tokens.long(), (0, length - tokens.shape[1]), value=filling)
