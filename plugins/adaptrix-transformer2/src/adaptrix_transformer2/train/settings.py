"""Settings of a training: those of every training, and those of the one on rewards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from adaptrix import Problem, UsageError
from adaptrix_transformer2.parametrisation import KINDS, Kind

_LARGEST = 1e30  # of a number: an optimiser's sums of larger ones are none in fp32


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """``batch`` examples a step, Adam at ``rate``, gradients clipped to the norm ``clip``.

    Every ``every`` steps, and before the first, the expert is measured on the validation examples, and the best is
    kept. ``rows`` go through the model at once: fewer take less memory and give the same. ``kind``: see
    :mod:`adaptrix_transformer2.parametrisation`.
    """

    steps: int = 300
    batch: int = 32
    rate: float = 5e-2
    clip: float = 1.0
    every: int = 25
    rows: int = 128
    seed: int = 0
    kind: Kind = "reference"

    @classmethod
    def published(cls, **changes: Any) -> TrainingSettings:
        """Of the published training on rewards: batches of 256, Adam at 2e-3, gradients clipped to 1e-3."""
        return cls(**{"batch": 256, "rate": 2e-3, "clip": 1e-3, "every": 1, **changes})


@dataclass(frozen=True, slots=True)
class Policy:
    """Sampling of answers, and their rewards.

    ``samples`` answers of at most ``longest`` tokens to each prompt, drawn at ``temperature`` (0: the likeliest
    token); ``baseline``: from each reward the mean of those of the other answers to the same prompt is taken away;
    ``signed``: a reward counts as 1 where it is above 0, else as −1; ``kl``: what KL(base ‖ expert) weighs.
    ``patience``: steps in a row whose rewards are all equal, after which there is nothing to learn.
    """

    samples: int = 4
    temperature: float = 1.0
    longest: int = 16
    baseline: bool = True
    signed: bool = False
    kl: float = 0.02
    patience: int = 20

    @classmethod
    def published(cls, **changes: Any) -> Policy:
        """As published: the likeliest answer alone, rewards of 1 and −1, and no baseline."""
        return cls(**{"samples": 1, "temperature": 0.0, "baseline": False, "signed": True, "kl": 0.0, **changes})


def require_valid(settings: TrainingSettings, policy: Policy | None = None) -> None:
    """Raises :class:`UsageError` with every number that makes no sense."""
    if problems := list(invalid_settings(settings, policy)):
        raise UsageError(problems)


def invalid_settings(settings: TrainingSettings, policy: Policy | None = None) -> Iterator[Problem]:
    """A problem for every number that makes no sense."""
    yield from _problems(settings)
    if policy is not None:
        yield from _policy_problems(policy)


def _problems(settings: TrainingSettings) -> Iterator[Problem]:
    for name in ("steps", "batch", "every", "rows"):
        yield from _whole(name, getattr(settings, name), 1)
    yield from _whole("seed", settings.seed, 0)
    for name in ("rate", "clip"):
        yield from _number(name, getattr(settings, name), above=True)
    if settings.kind not in KINDS:
        yield Problem("option", "kind", repr(settings.kind)[:80], " or ".join(KINDS))


def _policy_problems(policy: Policy) -> Iterator[Problem]:
    for name in ("samples", "longest", "patience"):
        yield from _whole(name, getattr(policy, name), 1)
    for name in ("temperature", "kl"):
        yield from _number(name, getattr(policy, name), above=False)
    for name in ("baseline", "signed"):
        if type(getattr(policy, name)) is not bool:
            yield Problem("option", name, repr(getattr(policy, name))[:80], "true or false")
    if policy.baseline is True and policy.samples == 1:
        remedy = "Draw more samples, or set baseline to false."
        yield Problem("option", "baseline", "a prompt has one answer, and no other to compare it with", remedy=remedy)
    if policy.temperature == 0 and policy.samples != 1:
        yield Problem("option", "samples", f"{policy.samples} answers that are all the same", "1 at temperature 0")


def _whole(name: str, value: object, least: int) -> Iterator[Problem]:
    if type(value) is not int or not least <= value < 1 << 40:
        yield Problem("option", name, repr(value)[:80], f"a whole number of at least {least}")


def _number(name: str, value: Any, *, above: bool) -> Iterator[Problem]:
    sane = type(value) in (int, float) and value <= _LARGEST and (value > 0 if above else value >= 0)
    if not sane:
        least = "above" if above else "of at least"
        yield Problem("option", name, repr(value)[:80], f"a number {least} 0 and at most {_LARGEST:g}")
