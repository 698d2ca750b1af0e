"""Reports of measurements: one row a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptrix.errors import Problem
from adaptrix.measuring.bootstrap import Estimate

BASE = "base"


@dataclass(frozen=True, slots=True)
class Row:
    """A plan beside the whole adapter, on the text; the row of policy ``base`` is the model without any.

    - ``layers``: the active layers as ranges, ``kept`` of them.
    - ``retained``: their share of Σ‖ΔW‖²_F, from 0 to 1; None where gains or overrides make it meaningless.
    - ``kl``: KL(full ‖ plan) a token, in nats.
    - ``agreement``: the share of tokens for which both have the same likeliest one.
    - ``perplexity``: a token.
    - ``bits_per_byte``: of UTF-8; None where only tokens were given.
    - ``tokens_per_second``: of the median window.
    - ``reused``: the share of the layers of a prompt's cache that a swap from the base to the plan keeps; None for the
      base.
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
    """The measurements of plans of an adapter on a text, beside the whole adapter.

    - ``source``, ``base``: as they were named.
    - ``text``: its file and SHA-256; empty where tokens were given.
    - ``tokens``: predicted, in ``windows`` windows of ``window`` tokens, each ``stride`` tokens after the one before.
    - ``seed``: drew the intervals, which hold 95 %.
    - ``dtype``, ``device``: of the model.
    - ``depth``: the number of layers of the base.
    - ``rows``: the whole adapter first, the base last.
    - ``problems``: warnings and notes.
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
