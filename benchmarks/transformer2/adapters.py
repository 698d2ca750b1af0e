"""What is trained on one base: an expert and a LoRA for each task, on answers and on rewards, and a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from adaptrix_transformer2 import Decomposition
from adaptrix_transformer2.dispatch import Question, train_classifier
from adaptrix_transformer2.train import reinforce, sft

from adaptrix.adapter import Adapter
from benchmarks.transformer2.lora import Lora, lora_reinforce, lora_sft
from benchmarks.transformer2.plan import RANK, Plan
from benchmarks.transformer2.tasks import Tasks, learning, name_of, reward
from benchmarks.world.operations import Task


@dataclass(frozen=True)
class Trained:
    """By task: experts and LoRAs of both trainings; and the classifier."""

    experts: Mapping[str, Adapter]
    rewarded: Mapping[str, Adapter]
    loras: Mapping[str, Lora]
    rewarded_loras: Mapping[str, Lora]
    classifier: Adapter


def train(model: Any, parts: Decomposition, tasks: Tasks, question: Question, plan: Plan, seed: int) -> Trained:
    """Everything, each task's four on the same examples."""
    found: dict[str, dict[str, Any]] = {"svf": {}, "svf rl": {}, "lora": {}, "lora rl": {}}
    for name, task in tasks.own.items():
        for method, one in _each(model, parts, (tasks, task), plan, seed, name).items():
            found[method][name] = one
    experts, rewarded, loras, rewarded_loras = found.values()
    return Trained(experts, rewarded, loras, rewarded_loras, _classifier(model, parts, tasks, question, plan, seed))


def _each(
    model: Any, parts: Decomposition, on: tuple[Tasks, Task], plan: Plan, seed: int, name: str
) -> dict[str, Adapter | Lora]:
    tasks, task = on
    some, held = learning(tasks, [task], plan.examples, plan.held, Random(f"examples {seed} {name}"))
    told: dict[str, Any] = {"validation": held, "ends": (), "decomposition": parts, "name": name}
    first, second = (Lora(model, parts.spectra, RANK, seed) for _ in range(2))
    answers, rewards = (replace(settings, seed=seed) for settings in (plan.answers, plan.rewards))
    lora_answers, lora_rewards = (replace(settings, seed=seed) for settings in (plan.lora_answers, plan.lora_rewards))
    return {
        "svf": sft(model, some, answers, **told).adapter,
        "svf rl": reinforce(model, some, reward, rewards, plan.policy, **told).adapter,
        "lora": lora_sft(model, first, some, held, lora_answers),
        "lora rl": lora_reinforce(model, second, some, held, reward, lora_rewards, plan.policy),
    }


def _classifier(model: Any, parts: Decomposition, tasks: Tasks, question: Question, plan: Plan, seed: int) -> Adapter:
    """As many prompts of each task with an expert, and as many of the others together."""
    rng = Random(f"classes {seed}")
    others = [task for task in tasks.library if task not in tasks.own.values()]
    groups = [[task] for task in tasks.own.values()] + [others]
    sets: list[dict[str, list[tuple[int, ...]]]] = [{}, {}]
    for group in groups:
        found = learning(tasks, group, plan.examples, plan.held, rng)
        for kept, examples in zip(sets, found, strict=True):
            kept[name_of(tasks, group[0])] = [example.prompt for example in examples]
    settings = replace(plan.classes, seed=seed)
    return train_classifier(model, sets[0], question, settings, validation=sets[1], decomposition=parts).adapter
