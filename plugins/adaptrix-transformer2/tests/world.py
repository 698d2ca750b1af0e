"""A base with two abilities and no way to know which is wanted: it turns three digits round, or adds one to each."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

import torch
from adaptrix_transformer2.train import Example
from transformers import LlamaConfig, LlamaForCausalLM

END, ASK = 0, 1  # the digits are 2 to 9


def example(rng: Random, turned: bool) -> Example:
    digits = [rng.randrange(2, 10) for _ in range(3)]
    return Example((*digits, ASK), tuple(reversed(digits)) if turned else tuple((it - 1) % 8 + 2 for it in digits))


def examples(count: int, turned: bool, seed: int = 1) -> list[Example]:
    rng = Random(seed)
    return [example(rng, turned) for _ in range(count)]


def right(wanted: Example, answer: tuple[int, ...]) -> float:
    return float(answer == wanted.response)


def small() -> Any:
    """The base before it has learnt anything."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 10, "bos_token_id": None, "eos_token_id": END, "pad_token_id": None}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, **tokens, num_key_value_heads=2, head_dim=12, max_position_embeddings=16)
    )


@cache
def base(steps: int = 300) -> Any:
    """The base, trained on both: about two seconds."""
    model, rng = small(), Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(steps):
        batch = [example(rng, rng.random() < 0.5) for _ in range(64)]
        ids = torch.tensor([[*one.prompt, *one.response, END] for one in batch])
        logits = model(input_ids=ids[:, :-1]).logits[:, 3:]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten()).backward()
        optimiser.step()
        schedule.step()
    return model.eval()
