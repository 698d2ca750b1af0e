"""What a measurement found: one row a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptrix.errors import Problem
from adaptrix.measuring.bootstrap import Estimate

BASE = "base"


@dataclass(frozen=True, slots=True)
class Row:
    """A plan beside the whole adapter, on the text; ``base`` is the model without any.

    ``layers`` act, ``kept`` of them; ``retained``: their share of Σ‖ΔW‖²_F, None where a share says nothing. ``kl``:
    KL(full ‖ plan) a token in nats; ``agreement``: the share of tokens for which both have the same likeliest one.
    ``tokens_per_second``: the median window's. ``reused``: the share of a prompt's prefill, in layers, that a swap to
    it kept; None for the base, which nobody swaps to a plan. ``bits_per_byte``: None where only tokens were given.
    """

    policy: str
    layers: str
    kept: int
    retained: float | None
    kl: Estimate
    agreement: Estimate
    perplexity: Estimate
    bits_per_byte: Estimate | None
    tokens_per_second: float
    reused: float | None


@dataclass(frozen=True)
class FidelityReport:
    """What the plans of an adapter cost on a text, beside the whole adapter.

    ``tokens`` were predicted, in ``windows`` of ``window`` tokens, each ``stride`` after the one before; ``depth``: the
    layers of the base. Intervals hold 95 % of what ``seed`` drew. ``rows``: the whole adapter first, the base last.
    """

    source: str
    base: str
    text: Mapping[str, str]
    tokens: int
    windows: int
    window: int
    stride: int
    seed: int
    dtype: str
    device: str
    depth: int
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = field(default=(), repr=False)

    def __getitem__(self, policy: str) -> Row:
        """The row of a policy. Raises :class:`KeyError`."""
        return {row.policy: row for row in self.rows}[policy]

    def as_dict(self) -> dict[str, Any]:
        problems = [problem.as_dict() for problem in self.problems]
        return {**vars(self), "text": dict(self.text), "rows": [asdict(r) for r in self.rows], "problems": problems}
