"""Training on rewards: REINFORCE with a KL penalty, as published (:meth:`Policy.published`) or with several answers
to a prompt, each of which is compared with the others.

The loss of an answer ŷ to x is −A·Σ log π(ŷ) + λ·Σ KL(base ‖ expert), both summed over the answer's tokens, and in the
mean over the answers of a batch. A is the reward, less the mean reward of the other answers to the same prompt where
there is a baseline (leave-one-out: arXiv 2402.14740). KL is over the whole vocabulary, in the direction that the
published code has it; the paper writes KL(expert ‖ base).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.extend import Counted, refuse, renamed_parameters, uncounted
from adaptrix_transformer2.decomposition import Decomposition, decomposed
from adaptrix_transformer2.train.answers import Tokens, answers, chosen, log_probabilities
from adaptrix_transformer2.train.examples import Example, rows_of
from adaptrix_transformer2.train.run import SKIPPED, Figures, Run
from adaptrix_transformer2.train.settings import Policy, TrainingSettings, require_valid
from adaptrix_transformer2.train.setup import Trained, ends_of, require_usable, result, saved_at
from adaptrix_transformer2.train.trainable import TrainableExpert, trainable_on

#: what an answer is worth; it comes without the token that ended it
Reward = Callable[[Example, Tokens], float]
EQUAL = "equal"  # in the figures of a step whose rewards were all the same

_SEEDS = 1_000_003  # steps that a seed is apart from the next


@renamed_parameters(course="settings")
def reinforce(
    model: nn.Module,
    examples: Sequence[Example],
    reward: Reward,
    settings: TrainingSettings | None = None,
    policy: Policy | None = None,
    *,
    validation: Sequence[Example] = (),
    ends: Collection[int] | None = None,
    decomposition: Decomposition | None = None,
    name: str = "expert",
    state: Path | None = None,
    keep_state: bool = False,
    display: Counted = uncounted,
) -> Trained:
    """An expert whose answers are rewarded. The model is as it was before when this returns or raises.

    ``validation``: examples by whose mean reward, of the likeliest answers, the best numbers are kept; without, the
    last are. The rest is as for :func:`sft`. A step whose rewards are all equal is left out, and says
    so in the figures; after ``policy.patience`` of them in a row the training ends. Raises :class:`AdaptrixError`
    with every problem, and where no two rewards differed until then.
    """
    settings, policy, ends = settings or TrainingSettings(), policy or Policy(), ends_of(model, ends)
    require_valid(settings, policy)
    sets = {"examples": examples} | ({"validation": validation} if validation else {})
    require_usable(model, sets, policy.longest)
    parts = decomposition or decomposed(model)
    record = {"method": "reinforce", **asdict(settings), **asdict(policy), "ends": ends}
    saved = saved_at(state, parts, sets, record)
    with trainable_on(model, parts, settings.kind, settings.seed) as trainable:
        task = Rewarded(model, trainable, tuple(examples), reward, settings, policy, ends)
        run = Run(trainable, settings, task.step, task.scorer(validation) if validation else None, task.enough)
        done = run.run(saved, display)
        trained = result(trainable, name, done, record)
    if saved is not None and not keep_state:
        saved.remove()
    return trained


def mean_reward(
    model: Any,
    examples: Sequence[Example],
    reward: Reward,
    longest: int,
    ends: Collection[int] | None = None,
    rows: int = 128,
) -> float:
    """The mean reward of the likeliest answers of the model as it is."""
    ends, total = ends_of(model, ends), 0.0
    for start in range(0, len(examples), rows):
        batch = examples[start : start + rows]
        found = answers(model, [example.prompt for example in batch], longest, ends)
        total += sum(_reward_of(reward, example, answer, ends) for example, answer in zip(batch, found, strict=True))
    return total / len(examples)


def _reward_of(reward: Reward, example: Example, answer: Tokens, ends: Collection[int]) -> float:
    """The reward of an answer. Raises :class:`RefusedError` for one that is no finite number."""
    value = float(reward(example, answer[:-1] if answer and answer[-1] in ends else answer))
    if not isfinite(value):
        raise refuse("reward", "reward", f"{value} for an answer of {len(answer)} tokens", "a finite number")
    return value


@dataclass(frozen=True, eq=False)
class Rewarded:
    """The steps on rewards, of an expert or of whatever else can act as one."""

    model: Any
    trainable: TrainableExpert
    examples: tuple[Example, ...]
    reward: Reward
    settings: TrainingSettings
    policy: Policy
    ends: tuple[int, ...]

    def step(self, step: int) -> Figures:
        """Leaves the gradient of a batch; none where its rewards say nothing."""
        rows = rows_of(len(self.examples), self.settings.batch, step, self.settings.seed)
        batch = [self.examples[at] for at in rows for _ in range(self.policy.samples)]
        found = self._drawn(batch, step)
        rewards = torch.tensor([self._reward(*pair) for pair in zip(batch, found, strict=True)], dtype=torch.float64)
        figures = {"loss": 0.0, "reward": float(rewards.mean())}
        if bool((rewards == rewards[0]).all()):
            figures[EQUAL] = 1.0
        worth = self._worth(rewards)
        if EQUAL in figures and (self.policy.baseline or not bool(worth.any())):
            return {**figures, SKIPPED: 1.0}
        return figures | self._gradient(batch, found, worth)

    def enough(self, figures: Sequence[Figures]) -> bool:
        """True where the rewards of each of the last steps were all equal. Raises :class:`RefusedError` if all steps'
        were."""
        last = figures[-self.policy.patience :]
        if len(last) < self.policy.patience or not all(EQUAL in one for one in last):
            return False
        if any(EQUAL not in one for one in figures):
            return True
        found = f"every answer of {len(figures)} steps was worth {last[-1]['reward']:g}"
        remedy = "Take examples that the base answers rightly now and then, or train on the answers first."
        raise refuse("rewards-equal", "reward", found, "rewards that differ between answers", remedy)

    def scorer(self, validation: Sequence[Example]) -> Callable[[], float]:
        """The mean reward of the likeliest answers to the validation examples."""

        def score() -> float:
            with self.trainable.acting():
                longest, rows = self.policy.longest, self.settings.rows
                return mean_reward(self.model, validation, self.reward, longest, self.ends, rows)

        return score

    def _reward(self, example: Example, answer: Tokens) -> float:
        found = _reward_of(self.reward, example, answer, self.ends)
        return (1.0 if found > 0 else -1.0) if self.policy.signed else found

    def _drawn(self, batch: Sequence[Example], step: int) -> list[Tokens]:
        generator = torch.Generator().manual_seed(self.settings.seed * _SEEDS + step)
        found, rows = list[Tokens](), self.settings.rows
        with torch.no_grad(), self.trainable.acting():
            for start in range(0, len(batch), rows):
                prompts = [example.prompt for example in batch[start : start + rows]]
                longest, temperature = self.policy.longest, self.policy.temperature
                found += answers(self.model, prompts, longest, self.ends, temperature, generator)
        return found

    def _worth(self, rewards: Tensor) -> Tensor:
        """A of each answer ``[answers]``: the reward, or how far it is above those of the others to its prompt."""
        if not self.policy.baseline:
            return rewards
        count = self.policy.samples
        groups = rewards.view(-1, count)
        return (groups - (groups.sum(1, keepdim=True) - groups) / (count - 1)).flatten()

    def _gradient(self, batch: Sequence[Example], found: Sequence[Tokens], worth: Tensor) -> Figures:
        """Leaves the gradient; an answer that is worth 0 counts only where KL does."""
        counted = [at for at in range(len(batch)) if self.policy.kl or worth[at]]
        totals = {"loss": 0.0, "kl": 0.0}
        for start in range(0, len(counted), self.settings.rows):
            part = counted[start : start + self.settings.rows]
            pairs = [(batch[at].prompt, found[at]) for at in part]
            loss, kl = self._loss(pairs, worth[part], len(batch))
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
            totals["loss"] += float(loss.detach())
            totals["kl"] += float(kl.detach())
        self.trainable.pull()
        return totals

    def _loss(self, pairs: Sequence[tuple[Tokens, Tokens]], worth: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The share of some answers in the mean loss of ``count``, and in the mean KL of an answer."""
        with self.trainable.acting():
            log_p, tokens, mask = log_probabilities(self.model, pairs)
        gain = ((chosen(log_p, tokens) * mask).sum(1) * worth.to(log_p)).sum() / count
        if not self.policy.kl:
            return -gain, gain * 0
        with torch.no_grad():
            base = log_probabilities(self.model, pairs)[0]
        kl = (nn.functional.kl_div(log_p, base, reduction="none", log_target=True).sum(2) * mask).sum() / count
        return self.policy.kl * kl - gain, kl
