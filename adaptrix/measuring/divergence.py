"""The divergence of choices of adapters from a reference, window by window.

The reference answers each window first, then every choice on the same tokens: comparisons are paired, and whatever
disturbs the clock disturbs all. The logits of two windows at most are in memory, and the probabilities of a few rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptrix.errors import refuse
from adaptrix.measuring.text import Window
from adaptrix.runtime.session import Choice, Session

Numbers = NDArray[np.float64]
#: probabilities that are in memory at a time
_HELD = 1 << 22


@dataclass(frozen=True, eq=False)
class Divergence:
    """A choice beside the reference: for each window ``[windows]``, sums over the tokens that count in it.

    - ``tokens``: the number of tokens that count.
    - ``kl``: KL(reference ‖ choice) in nats, over the whole vocabulary.
    - ``agreed``: the number of tokens for which both have the same likeliest one.
    - ``surprise``: -log p of the text's own token, in nats.
    - ``seconds``: the time of the choice's pass over the window, of ``read`` tokens.
    """

    tokens: Numbers
    kl: Numbers
    agreed: Numbers
    surprise: Numbers
    seconds: Numbers
    read: Numbers


@torch.no_grad()
def divergence(
    model: nn.Module,
    session: Session,
    reference_choice: Choice,
    choices: Sequence[Choice],
    windows: Sequence[Window],
    advance: Callable[[int], object] = lambda _passes: None,
) -> tuple[Divergence, ...]:
    """The divergence of each choice from the reference, in the order of ``choices``.

    - ``model``: a causal language model, used as it is: in training mode its dropout counts.
    - ``session``: the one attached to it.
    - ``reference_choice``: what all others are compared with.
    - ``choices``: as for :meth:`Session.use`.
    - ``windows``: of at least one token that counts.
    - ``advance``: called with 1 after each of the ``len(windows) * (1 + len(choices))`` passes.

    Raises :class:`RefusedError` where a model answers NaN.
    """
    rows: list[list[tuple[float, ...]]] = [[] for _ in choices]
    for window in windows:
        reference, _ = _answer(model, session, reference_choice, window)
        advance(1)
        for choice, found in zip(choices, rows, strict=True):
            own, seconds = _answer(model, session, choice, window)
            sums = compared(reference, own, window.tokens[-window.counted :].to(own.device))
            _require_numbers(sums, choice)
            found.append((window.counted, *sums, seconds, len(window.tokens)))
            advance(1)
    return tuple(Divergence(*np.array(found, dtype=np.float64).reshape(-1, 6).T) for found in rows)


def compared(reference: Tensor, own: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """Sums over the tokens of KL, of agreement and of surprise, as :class:`Divergence` has them.

    ``reference``, ``own``: logits ``[tokens, vocabulary]``; ``targets``: the tokens ``[tokens]`` that follow.
    """
    step = max(1, _HELD // own.shape[-1])
    parts = zip(*(torch.split(every, step) for every in (reference, own, targets)), strict=True)
    kl, agreed, surprise = torch.tensor([_part(*part) for part in parts], dtype=torch.float64).sum(0).tolist()
    return kl, agreed, surprise


def _part(reference: Tensor, own: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """The sums of a few rows, in fp32.

    KL is Σ p (log p - log q) + q - p. The last two cancel in the sum, and with them the rounding errors of the
    sums of p and q, which would exceed a small divergence.
    """
    p, q = reference.float().log_softmax(-1), own.float().log_softmax(-1)
    terms = p.exp() * (p - q) + (q.exp() - p.exp())
    kl = torch.where(p.isneginf(), q.exp(), terms)  # a token that the reference rules out: p log p is 0, not NaN
    agreed = reference.argmax(-1) == own.argmax(-1)
    surprise = -q.gather(-1, targets[:, None])
    return float(kl.sum(dtype=torch.float64)), float(agreed.sum()), float(surprise.sum(dtype=torch.float64))


def _answer(model: nn.Module, session: Session, choice: Choice, window: Window) -> tuple[Tensor, float]:
    """The logits ``[counted, vocabulary]`` for the tokens that count, and the seconds of the pass."""
    device: Any = model.device
    ids = window.tokens[None].to(device)
    with session.use(choice):
        began = _now(device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        took = _now(device) - began
    return logits[0, -window.counted - 1 : -1], took


def _now(device: torch.device) -> float:
    """The time once the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _require_numbers(sums: tuple[float, ...], choice: Choice) -> None:
    if any(value != value for value in sums):
        names = choice if isinstance(choice, str) else " + ".join(choice or ("base",))
        remedy = "In fp16 a model may overflow: measure it in fp32 or bf16. Else its weights are damaged."
        raise refuse("nonfinite", names, "the model answers NaN", "finite logits", remedy)
