"""The agreement of a merged model with its base and adapter, as numbers and in a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from adaptrix.schemas.values import number

if TYPE_CHECKING:
    from adaptrix.schemas.reports import AgreementJSON


@dataclass(frozen=True, slots=True)
class Agreement:
    """A merged model beside its base with the adapter attached.

    - ``largest``: the largest difference of a logit.
    - ``spread``: the standard deviation of the logits.
    - ``top1``: the share of ``tokens`` for which both have the same likeliest one.
    - ``kl``: KL(attached ‖ merged) a token, in nats.
    - ``effect``: the largest change of a logit by the adapter itself.
    - ``tokens``: compared.
    - ``kl_on``: for an adapter trained on NF4, ``kl`` of the merge into each base; empty otherwise.
    """

    largest: float
    spread: float
    top1: float
    kl: float
    effect: float
    tokens: int
    kl_on: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def relative(self) -> float:
        """The largest difference in standard deviations of the logits."""
        return self.largest / self.spread if self.spread else self.largest

    def __str__(self) -> str:
        moved = f"{self.relative:.1e} of their spread; the adapter moves them by up to {self.effect:.2e}"
        agreed = f"top-1 agrees on {self.top1:.1%} of {self.tokens} tokens, KL {self.kl:.1e} a token"
        bases = ", ".join(f"merged into {base} {kl:.1e}" for base, kl in self.kl_on.items())
        beside = f"; KL a token to the NF4 base with the adapter: {bases}" if bases else ""
        return f"logits differ by at most {self.largest:.2e} ({moved}), {agreed}{beside}"

    def as_dict(self) -> AgreementJSON:
        return {
            "largest": number(self.largest),
            "spread": number(self.spread),
            "top1": number(self.top1),
            "kl": number(self.kl),
            "effect": number(self.effect),
            "tokens": self.tokens,
            "kl_on": {base: number(kl) for base, kl in self.kl_on.items()},
        }
