"""How long everything trains: the whole run, and the quick one that only checks that the benchmark works."""

from __future__ import annotations

from dataclasses import dataclass

from adaptrix_transformer2.dispatch import Search
from adaptrix_transformer2.train import Policy, TrainingSettings

from benchmarks.world.base import Pretraining
from benchmarks.world.operations import LENGTH

RANK = 4  # of the LoRAs


@dataclass(frozen=True, slots=True)
class Plan:
    """``told``: steps in which the base learns to read and to class; ``examples`` of each task to train an expert or a
    LoRA on, ``held`` to choose its best step by, ``shots`` to search mixtures by, ``measured`` inputs
    of each task to report on."""

    base: Pretraining
    told: int
    answers: TrainingSettings
    lora_answers: TrainingSettings
    rewards: TrainingSettings
    lora_rewards: TrainingSettings
    classes: TrainingSettings
    policy: Policy
    search: Search
    examples: int = 256
    held: int = 64
    shots: int = 10
    measured: int = 32


def _plan(base: Pretraining, told: int, steps: int, rewarded: int, search: Search, **sizes: int) -> Plan:
    return Plan(
        base=base,
        told=told,
        answers=TrainingSettings(steps=steps, rate=0.2, every=max(1, steps // 6), kind="paper"),
        lora_answers=TrainingSettings(steps=steps, rate=1e-2, every=max(1, steps // 6)),
        rewards=TrainingSettings(steps=rewarded, batch=16, rate=0.1, every=max(1, rewarded // 4), kind="paper"),
        lora_rewards=TrainingSettings(steps=rewarded, batch=16, rate=1e-2, every=max(1, rewarded // 4)),
        classes=TrainingSettings(steps=steps, rate=0.1, every=max(1, steps // 6), kind="paper"),
        policy=Policy(samples=4, longest=LENGTH),
        search=search,
        **sizes,
    )


FULL = _plan(Pretraining(), 600, 300, 80, Search())
QUICK = _plan(Pretraining(steps=60), 20, 8, 4, Search(generations=1, population=8), examples=32, held=8, measured=8)
