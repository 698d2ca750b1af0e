"""The rows of a report: every plan measured in one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptrix.adapter import Adapter
from adaptrix.attaching import attach
from adaptrix.binding.stacks import ranges
from adaptrix.measuring.bootstrap import Estimate, estimate
from adaptrix.measuring.divergence import Divergence, divergence
from adaptrix.measuring.policies import FULL, planned
from adaptrix.measuring.report import BASE, Row
from adaptrix.measuring.text import Tokens, Window
from adaptrix.planning.plan import Plan
from adaptrix.progress import Display
from adaptrix.runtime.swapping import why_whole


@dataclass(frozen=True, eq=False)
class Measurement:
    """The model and the text that all plans are measured on.

    ``model``: in evaluation mode. ``tokens``: the text's. ``windows``: of ``length`` tokens, ``stride`` apart.
    ``seed``: draws the intervals.
    """

    model: nn.Module
    tokens: Tokens
    windows: Sequence[Window]
    length: int
    stride: int
    seed: int

    def rows(self, plans: Mapping[str, Plan], display: Display) -> tuple[Row, ...]:
        """A row for each plan, ``all`` among them, and one for the model without any.

        ``display`` opens a bar over the passes. Raises :class:`RefusedError` for an adapter that cannot be attached.
        """
        adapters = {name: planned(plan) for name, plan in plans.items()}
        choices = (*plans, None)
        with attach(self.model, adapters) as session, display(len(self.windows) * (1 + len(choices))) as advance:
            *found, plain = divergence(self.model, session, FULL, choices, self.windows, advance)
        shares = [reused(self.model, adapter, self.tokens.ids) for adapter in adapters.values()]
        rows = [
            self._row(name, plan, measured, share)
            for (name, plan), measured, share in zip(plans.items(), found, shares, strict=True)
        ]
        return (*rows, self._row(BASE, None, plain, None))

    def _row(self, name: str, plan: Plan | None, found: Divergence, share: float | None) -> Row:
        layers = [] if plan is None else sorted({layer for kept in plan.layers.values() for layer in kept})
        surprise = estimate(found.surprise, found.tokens, self.seed)
        return Row(
            policy=name,
            layers=ranges(layers),
            kept=0 if plan is None else sum(map(len, plan.layers.values())),
            retained=None if plan is None else plan.retained,
            kl=estimate(found.kl, found.tokens, self.seed),
            agreement=estimate(found.agreed, found.tokens, self.seed),
            perplexity=surprise.through(lambda nats: float(np.exp(nats))),
            bits_per_byte=self._bits(surprise, found),
            tokens_per_second=float(np.median(found.read / found.seconds)),
            reused=share,
        )

    def _bits(self, surprise: Estimate, found: Divergence) -> Estimate | None:
        """Surprise in bits for each byte that was predicted."""
        if not self.tokens.predicted:
            return None
        bits = float(found.tokens.sum()) / self.tokens.predicted / log(2)
        return surprise.through(lambda nats: nats * bits)


_PROMPT = 64


@torch.no_grad()
def reused(model: nn.Module, adapter: Adapter, ids: Tensor) -> float:
    """The share of the layers of a cache that a swap from the base to the adapter keeps.

    The adapter is attached alone: a cache is kept up to the lowest layer that any attached adapter changes. ``ids``: a
    text ``[n]``, whose first 64 tokens are the prompt.
    """
    if why_whole(model):
        return 0.0  # the prompt is read again
    device: Any = model.device
    with attach(model, {"plan": adapter}) as session:
        cache = session.new_cache()
        model(input_ids=ids[None, :_PROMPT].to(device), past_key_values=cache, use_cache=True)
        done = session.swap("plan", cache)
    return done.kept / (done.kept + done.recomputed)
