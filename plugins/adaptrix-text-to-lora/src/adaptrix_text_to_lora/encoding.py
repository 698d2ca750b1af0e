"""Encoders by name, and many texts embedded at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from adaptrix import Problem, RefusedError, UsageError
from adaptrix_text_to_lora.encoders import Encoder, HashedNgrams, Pooling


def named_encoder(name: str, width: int, base: str | None, pooling: Pooling | None, where: str) -> Encoder:
    """``hashed`` of a width, ``base`` for the states of a base, or the folder or Hub name of an embedding model.

    ``where`` names who asks. Raises :class:`AdaptrixError`.
    """
    if name == "hashed":
        return HashedNgrams(width)
    if name == "base" and base is None:
        found, remedy = "the checkpoint reads the states of its base, and none is named", "Name it with --base MODEL."
        raise UsageError(Problem("base-needed", where, found, remedy=remedy))
    from adaptrix_text_to_lora.states import ModelStates  # transformers takes seconds, and only this needs it

    return ModelStates(base, pooling or "last") if name == "base" and base else ModelStates(name, pooling)


def embedded(texts: Iterable[str], embed: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """``[N, E]``. Raises :class:`RefusedError` with every text that cannot be embedded."""
    vectors, problems = list[torch.Tensor](), list[Problem]()
    for text in texts:
        try:
            vectors.append(embed(text))
        except RefusedError as error:
            problems += error.problems
    if problems:
        raise RefusedError(problems)
    return torch.stack(vectors)
