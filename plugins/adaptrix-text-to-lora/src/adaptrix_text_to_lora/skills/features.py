"""Features of a prompt for the classifier: its embedding, and the number of keywords of every skill in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from adaptrix_text_to_lora.encoders import Encoder, scaled
from adaptrix_text_to_lora.prompts import formatted
from adaptrix_text_to_lora.skills.keywords import KEYWORDS, count
from adaptrix_text_to_lora.skills.labelled import Prompt

#: what is looked at: keyword counts, the embedding, or the embedding and then the counts
Kind = Literal["keyword", "neural", "both"]
Look = Callable[[Sequence[str]], Tensor]

_LENGTH = 3.0  # of an embedding beside counts, which are 0 to 3
_MOST = 3


def embedded(texts: Sequence[str], encoder: Encoder) -> Tensor:
    """``[N, E]``, every row as long as any other."""
    rows = [scaled(encoder(formatted(text)), encoder).double() for text in texts]
    return torch.stack(rows) * (_LENGTH / encoder.width**0.5)


def counted(texts: Sequence[str], lists: Iterable[Iterable[str]] = KEYWORDS.values()) -> Tensor:
    """``[N, lists]``: keywords of every list in every text, at most three."""
    every = [tuple(words) for words in lists]
    return torch.tensor([[min(count(text, words), _MOST) for words in every] for text in texts], dtype=torch.float64)


def looking(kind: Kind, encoder: Encoder) -> Look:
    """The features of a kind, as a function of texts."""
    if kind == "keyword":
        return counted
    if kind == "neural":
        return lambda texts: embedded(texts, encoder)
    return lambda texts: torch.cat([embedded(texts, encoder), counted(texts)], dim=1)


def labels(prompts: Sequence[Prompt]) -> Tensor:
    """``[N, skills]``: 1 where a prompt has a skill."""
    rows = [[float(skill in prompt.skills) for skill in KEYWORDS] for prompt in prompts]
    return torch.tensor(rows, dtype=torch.float64)
