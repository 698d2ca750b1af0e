"""Drift: the size of an adapter's change to a module's output, measured and, if asked, bounded.

The drift of a token is ‖d‖/‖y‖, d being what is added to the module's output y. A bound τ scales d down
where it would be exceeded: y' = y + min(1, τ‖y‖/‖d‖)·d.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from adaptrix.runtime.kernel import ActiveKernel


class Drift:
    """Adds deltas and keeps count; ``limit`` is τ, None to measure only."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._lock = Lock()
        self.tokens = 0
        self.clamped = 0
        self.largest = 0.0
        self._sum = 0.0

    @property
    def mean(self) -> float:
        """The mean drift of all tokens so far, before any bound; 0 if there were none."""
        return self._sum / self.tokens if self.tokens else 0.0

    def add(self, kernel: ActiveKernel, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the kernel's delta added, within the limit."""
        d = kernel.delta(x, y).to(y.dtype)
        share = _norm(d) / _norm(y).clamp_min(torch.finfo(y.dtype).tiny)
        self._count(share)
        if self._limit is None:
            return y + d
        factor = (self._limit / share.clamp_min(self._limit)) if self._limit else torch.zeros_like(share)
        return y + factor.unsqueeze(-1).to(y.dtype) * d

    def _count(self, share: Tensor) -> None:
        with torch.no_grad(), self._lock:
            self.tokens += share.numel()
            self._sum += float(share.sum())
            self.largest = max(self.largest, float(share.max()))
            if self._limit is not None:
                self.clamped += int((share > self._limit).sum())


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor.float(), dim=-1)
    return norm
