"""Tokens: a digit, a sign, a word of the descriptions, or a word of the notation that only the base's own texts use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from benchmarks.world.descriptions import WAYS, describe
from benchmarks.world.operations import (
    LENGTH,
    MODULUS,
    Affine,
    Cipher,
    Composed,
    Digits,
    Exchange,
    Reverse,
    Rotate,
    Sort,
    Task,
)
from benchmarks.world.splits import families

START, ARROW, END, PAD = "<s>", ">", "</s>", "<pad>"
#: the length of a prompt: a start, the digits and an arrow; the answer is the digits and an end
PROMPT = LENGTH + 2
ROW = PROMPT + LENGTH
_NOTATION = ("*", "+", "~", "rot", "xch", "rev", "up", "down", *(f"@{place}" for place in range(LENGTH)))


@cache
def vocabulary() -> dict[str, int]:
    """The number of every token; a digit is its own number."""
    signs = [*map(str, range(MODULUS)), START, ARROW, END, PAD, *_NOTATION]
    tasks = [task for family in families().values() for task in family]
    words = {word for task in tasks for way in range(WAYS) for word in describe(task, way).split()}
    return {token: number for number, token in enumerate([*signs, *sorted(words - set(signs))])}


def tokens(text: str) -> list[int]:
    """The tokens of a text of known words."""
    return [vocabulary()[word] for word in text.split()]


def rows(task: Task, inputs: Digits) -> Tensor:
    """``[N, ROW]``: a start, an input, an arrow and the answer; nothing in the prompt says which task it is."""
    known = vocabulary()
    starts, arrows = (torch.full((len(inputs), 1), known[sign]) for sign in (START, ARROW))
    return torch.cat([starts, torch.from_numpy(inputs), arrows, torch.from_numpy(task(inputs))], 1)


def notation(task: Task) -> str:
    """A task as the base's texts write it before some of their examples; no description is written so."""
    match task:
        case Composed():
            return f"{notation(task.first)} {notation(task.then)}"
        case Affine():
            return " ".join([*([f"* {task.a}"] if task.a != 1 else []), *([f"+ {task.b}"] if task.b else [])])
        case Cipher():
            return " ".join(f"~ {one} {other}" for one, other in task.pairs)
        case Rotate():
            return f"rot @{task.by}"
        case Exchange():
            return f"xch @{task.one} @{task.other}"
        case Reverse():
            return "rev"
        case Sort():
            return "up" if task.up else "down"


def padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """``[N, longest]``, filled at the end."""
    longest, fill = max(map(len, sequences)), vocabulary()[PAD]
    return torch.tensor([[*sequence, *[fill] * (longest - len(sequence))] for sequence in sequences])
