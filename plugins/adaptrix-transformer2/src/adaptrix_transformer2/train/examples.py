"""Examples as lists of tokens, and how several become one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptrix import Problem, RefusedError


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the answer to it, each as tokens; the token that ends a text is no part of the answer."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def require_examples(examples: Sequence[Example], name: str, limit: int | None, extra: int) -> None:
    """Raises :class:`RefusedError` with what is wrong: none, empty ones, and those of more tokens than a model reads.

    ``limit``: positions that the model has; ``extra``: tokens that may be written beside prompt and answer.
    """
    problems = [] if examples else [Problem("examples", name, "there are none", "at least one")]
    for at, example in enumerate(examples):
        count = len(example.prompt) + len(example.response) + extra
        if not example.prompt or not example.response:
            lacking = "response" if example.prompt else "prompt"
            problems.append(Problem("examples", f"{name} {at + 1}", f"its {lacking} has no tokens", "at least one"))
        elif limit is not None and count > limit:
            found, expected = f"it may take {count} tokens", f"at most {limit}, as the model has positions for"
            problems.append(Problem("examples", f"{name} {at + 1}", found, expected))
    if problems:
        raise RefusedError(problems)


def rows_of(count: int, size: int, step: int, seed: int) -> list[int]:
    """The numbers of the examples that a step takes of ``count``, at most ``size``; every epoch has its own order."""
    size = min(size, count)
    epoch, place = divmod(step, count // size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return [int(at) for at in order[place * size : (place + 1) * size]]


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens ``[rows, longest]``, filled up with zeros, and a mask that is 1 where there is a token."""
    longest = max(map(len, rows))
    blanks = [[0] * (longest - len(row)) for row in rows]
    ids = [[*blank, *row] if left else [*row, *blank] for row, blank in zip(rows, blanks, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [[*blank, *one] if left else [*one, *blank] for one, blank in zip(ones, blanks, strict=True)]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
