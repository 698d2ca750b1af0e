"""Reports of measurements: one row a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptrix.binding.bind import BoundAdapter
from adaptrix.errors import Problem, errors_in
from adaptrix.measuring.bootstrap import Estimate
from adaptrix.schemas.values import number
from adaptrix.wording import some

if TYPE_CHECKING:
    from adaptrix.schemas.reports import EstimateJSON, FidelityJSON, RowJSON, TextJSON

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

    def as_dict(self) -> RowJSON:
        return {
            "policy": self.policy,
            "layers": self.layers,
            "kept": self.kept,
            "retained": number(self.retained),
            "kl": _estimate(self.kl),
            "agreement": _estimate(self.agreement),
            "perplexity": _estimate(self.perplexity),
            "bits_per_byte": None if self.bits_per_byte is None else _estimate(self.bits_per_byte),
            "tokens_per_second": number(self.tokens_per_second),
            "reused": self.reused,
        }


def _estimate(found: Estimate) -> EstimateJSON:
    return {"value": number(found.value), "low": number(found.low), "high": number(found.high)}


@dataclass(frozen=True, repr=False)
class FidelityReport:
    """The measurements of plans of an adapter on a text, beside the whole adapter.

    - ``source``, ``base``: as they were named.
    - ``adapter``: as it was bound to the base.
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
    adapter: BoundAdapter
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
    problems: tuple[Problem, ...] = ()

    def __repr__(self) -> str:
        """The source, the base and the plans measured: rows have a dozen figures each."""
        plans = some((row.policy for row in self.rows), 8)
        return f"<FidelityReport {self.source!r} on {self.base!r}: {plans}; {self.tokens} tokens>"

    def __getitem__(self, policy: str) -> Row:
        """The row of a policy. Raises :class:`KeyError`."""
        return {row.policy: row for row in self.rows}[policy]

    def as_dict(self) -> FidelityJSON:
        text: TextJSON | None = {"file": self.text["file"], "sha256": self.text["sha256"]} if self.text else None
        return {
            "source": self.source,
            "ok": not errors_in(self.problems),
            "problems": [problem.as_dict() for problem in self.problems],
            "base": self.base,
            "adapter": self.adapter.as_dict(),
            "text": text,
            "tokens": self.tokens,
            "windows": self.windows,
            "window": self.window,
            "stride": self.stride,
            "seed": self.seed,
            "dtype": self.dtype,
            "device": self.device,
            "depth": self.depth,
            "rows": [row.as_dict() for row in self.rows],
        }
