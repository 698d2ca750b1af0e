"""From prompts and responses to tokens and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptrix import Problem, RefusedError
from adaptrix.extend import require_causal, require_in_vocabulary
from adaptrix_text_to_lora.encoders import Encoder, scaled
from adaptrix_text_to_lora.encoding import embedded
from adaptrix_text_to_lora.training.files import Texts
from adaptrix_text_to_lora.training.tasks import IGNORED, Task


def prepared(tasks: Sequence[Texts], tokenizer: Any, encoder: Encoder, length: int) -> list[Task]:
    """The tasks as they are trained on. A response ends with the tokenizer's end, which is learned too.

    Raises :class:`RefusedError` with every text that cannot be embedded, and every example that has no token to learn
    or more than ``length``: nothing is cut.
    """
    encode = _encoder(tokenizer)
    rows = [[encode(prompt, response) for prompt, response in task.examples] for task in tasks]
    faults = [_faults(task, pairs, length) for task, pairs in zip(tasks, rows, strict=True)]
    if problems := [problem for found in faults for problem in found]:
        raise RefusedError(problems)
    vectors = [embedded(task.descriptions, lambda text: scaled(encoder(text), encoder)) for task in tasks]
    return [_task(found, pairs) for found, pairs in zip(vectors, rows, strict=True)]


def require_readable(model: Any, tasks: Sequence[Task], name: str) -> None:
    """Raises :class:`RefusedError` for a model that is no causal one, or has no embedding for some of the tokens."""
    for task in tasks:
        require_in_vocabulary(model, task.ids.flatten(), name)
    require_causal(model, tasks[0].ids[0], name)


Pair = tuple[list[int], list[int]]


def _encoder(tokenizer: Any) -> Callable[[str, str], Pair]:
    """From a prompt and a response to the tokens of both, each read by itself so that the border is a token's too."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(prompt: str, response: str) -> Pair:
        before = list(tokenizer(prompt)["input_ids"])
        if end and before[-1:] == end and len(before) > 1:  # tokenizers that end every text
            before = before[:-1]
        return before, [*tokenizer(response, add_special_tokens=False)["input_ids"], *end]

    return encode


def _faults(task: Texts, pairs: Sequence[Pair], length: int) -> list[Problem]:
    problems = []
    for (prompt, _), (before, after) in zip(task.examples, pairs, strict=True):
        where = f"{task.name[:60]}: {prompt[:40]!a}"
        if not before or not after:
            problems.append(Problem("training-data", where, "its prompt or response has no tokens", "tokens in both"))
        elif len(before) + len(after) > length:
            remedy = "Make it shorter, or `length` larger."
            found = f"it has {len(before) + len(after)} tokens"
            problems.append(Problem("training-data", where, found, f"at most {length}", remedy))
    return problems


def _task(embeddings: Tensor, pairs: Sequence[Pair]) -> Task:
    longest = max(len(before) + len(after) for before, after in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, (before, after) in enumerate(pairs):
        ids[row, : len(before) + len(after)] = torch.tensor([*before, *after])
        labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
    return Task(embeddings, ids, labels)
