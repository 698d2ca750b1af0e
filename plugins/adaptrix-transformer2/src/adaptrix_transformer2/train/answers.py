"""Answers of a model, token by token, and the probabilities that it gives to answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from adaptrix_transformer2.train.examples import padded

Tokens = tuple[int, ...]


@torch.no_grad()
def answers(
    model: Any,
    prompts: Sequence[Tokens],
    longest: int,
    ends: Collection[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Tokens]:
    """An answer of at most ``longest`` tokens to each prompt, its end token included where it came to one.

    ``temperature`` 0 takes the likeliest token; else it is drawn from all of the vocabulary with ``generator``, so
    that the same generator gives the same answers.
    """
    ids, mask = padded(prompts, model.device, left=True)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    takes_positions = "position_ids" in signature(model.forward).parameters
    found, open_, cache = [], torch.ones(len(prompts), dtype=torch.bool), None
    for _ in range(longest):
        given = {"position_ids": positions} if takes_positions else {}
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        token = _chosen(output.logits[:, -1].float().cpu(), temperature, generator)
        found.append(torch.where(open_, token, -1))
        open_ &= ~torch.isin(token, torch.tensor(sorted(ends), dtype=torch.long))
        if not open_.any():
            break
        cache, ids, positions = output.past_key_values, token[:, None].to(mask.device), positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return [tuple(int(token) for token in row if token >= 0) for row in torch.stack(found, 1)]


def _chosen(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def log_probabilities(model: Any, pairs: Sequence[tuple[Tokens, Tokens]]) -> tuple[Tensor, Tensor, Tensor]:
    """The log π of every token of the vocabulary at each position ``[rows, positions, vocabulary]``, the answers
    ``[rows, positions]``, and a mask that is 1 where there is one."""
    ids, mask = padded([(*prompt, *answer) for prompt, answer in pairs], model.device)
    tokens, own = padded([answer for _, answer in pairs], model.device)
    starts = torch.tensor([len(prompt) - 1 for prompt, _ in pairs], device=ids.device)
    positions = starts[:, None] + torch.arange(tokens.shape[1], device=ids.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    positions = positions.clamp_max(logits.shape[1] - 1)[..., None].expand(-1, -1, logits.shape[2])
    return logits.gather(1, positions).float().log_softmax(-1), tokens, own


def chosen(log_p: Tensor, tokens: Tensor) -> Tensor:
    """The log π of the answers' own tokens ``[rows, positions]``."""
    return log_p.gather(2, tokens[..., None])[..., 0]
