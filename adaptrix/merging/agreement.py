"""How close two models are, as numbers and in a line."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """A merged model beside its base with the adapter attached.

    ``largest``: the largest difference of a logit; ``spread``: the logits' standard deviation; ``top1``: the share of
    ``tokens`` for which both would say the same one; ``kl``: KL(attached ‖ merged) a token, in nats; ``effect``: how
    far the adapter itself moves a logit at most.
    """

    largest: float
    spread: float
    top1: float
    kl: float
    effect: float
    tokens: int

    @property
    def relative(self) -> float:
        """The largest difference in standard deviations of the logits."""
        return self.largest / self.spread if self.spread else self.largest

    def __str__(self) -> str:
        moved = f"{self.relative:.1e} of their spread; the adapter moves them by up to {self.effect:.2e}"
        agreed = f"top-1 agrees on {self.top1:.1%} of {self.tokens} tokens, KL {self.kl:.1e} a token"
        return f"logits differ by at most {self.largest:.2e} ({moved}), {agreed}"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
