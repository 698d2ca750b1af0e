"""How long and how fast a hypernetwork learns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """``steps`` of AdamW at a ``rate`` that rises in a straight line over ``warmup``, a share of the steps, and falls
    in one to zero; gradients of a norm above ``clip`` are scaled down to it, and ``decay`` is AdamW's.

    Each step sees ``tasks`` of all, with one description each, and ``rows`` examples of each where there are examples.
    ``dropout``: whether the hypernetwork's is on. What is drawn depends on ``seed`` and the step alone.
    """

    steps: int
    rate: float
    tasks: int = 8
    rows: int = 1
    warmup: float = 0.2
    clip: float = 1.0
    decay: float = 0.01
    dropout: bool = True
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        rising = max(1.0, self.warmup * self.steps)
        falling = max(1.0, self.steps - rising)
        return self.rate * min((step + 1) / rising, (self.steps - step) / falling, 1.0)
