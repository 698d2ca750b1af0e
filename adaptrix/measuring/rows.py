"""The rows of a report: every plan on one session, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from torch import nn

from adaptrix.attaching import attach
from adaptrix.binding.stacks import ranges
from adaptrix.measuring.bootstrap import Estimate, estimate
from adaptrix.measuring.divergence import Divergence, divergence
from adaptrix.measuring.policies import FULL, planned
from adaptrix.measuring.report import BASE, Row
from adaptrix.measuring.reuse import reused
from adaptrix.measuring.text import Tokens
from adaptrix.measuring.windows import Window
from adaptrix.planning.plan import Plan
from adaptrix.progress import Display


@dataclass(frozen=True, eq=False)
class Bench:
    """What all plans are measured on: a model at rest, a text in its tokens, and the windows of ``length`` tokens,
    ``stride`` apart, that it is cut into."""

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
