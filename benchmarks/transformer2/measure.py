"""How often each way of choosing experts is right: on the experts' own tasks, a stream of them, and unseen tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
from adaptrix_transformer2 import Decomposition, untrained
from adaptrix_transformer2.dispatch import Question, TwoPasses, adapt, mixture, score_on
from adaptrix_transformer2.train import Example
from adaptrix_transformer2.train.examples import padded

import adaptrix
from adaptrix.adapter import Adapter
from adaptrix.runtime.session import Session
from benchmarks.transformer2.adapters import Trained
from benchmarks.transformer2.plan import Plan
from benchmarks.transformer2.tasks import Tasks, learning, measuring

Rights = dict[str, float]
Sets = Mapping[str, Sequence[Example]]


def measured(
    model: Any, parts: Decomposition, tasks: Tasks, question: Question, trained: Trained, plan: Plan, seed: int
) -> dict[str, Any]:
    """All figures of a seed: the share of right answers by method and task, and of wrong choices of an expert."""
    own = {name: measuring(tasks, task, plan, seed) for name, task in tasks.own.items()}
    unseen = {name: measuring(tasks, task, plan, seed) for name, task in tasks.unseen.items()}
    uniform = mixture(parts, trained.experts, np.ones((len(own), 1)))
    attached = {**trained.experts, "classifier": trained.classifier, "uniform": uniform}
    with adaptrix.attach(model, attached) as session:
        found = {name: _under(model, session, name, {**own, **unseen}) for name in (None, "uniform", *own)}
        wrong = dict[str, float]()
        for way, classifier in (("prompt", None), ("classifier", "classifier")):
            passes = TwoPasses(model, session, question, classifier)
            found[way], missed = _dispatched(passes, {**own, **unseen})
            wrong |= {f"{way} {name}": share for name, share in missed.items()}
    found["base"] = found.pop(None)
    return {
        "tasks": {name: str(task) for name, task in {**tasks.own, **tasks.unseen}.items()},
        "own": own_rights(model, trained, own),
        "all": found | searched(model, parts, tasks, trained, plan, unseen, seed),
        "wrong": wrong,
    }


def own_rights(model: Any, trained: Trained, own: Sets) -> dict[str, Rights]:
    """Each task's own expert and LoRA, by how they were trained."""
    found: dict[str, Rights] = {"svf rl": {}, "lora": {}, "lora rl": {}}
    with adaptrix.attach(model, dict(trained.rewarded)) as session:
        for name, examples in own.items():
            found["svf rl"] |= _under(model, session, name, {name: examples})
    for method, loras in (("lora", trained.loras), ("lora rl", trained.rewarded_loras)):
        for name, lora in loras.items():
            with lora.acting():
                found[method][name] = score_on(model, own[name], ()).right
    return found


def searched(
    model: Any, parts: Decomposition, tasks: Tasks, trained: Trained, plan: Plan, unseen: Sets, seed: int
) -> dict[str, Rights]:
    """Mixtures of the experts and of z = 1, searched on a few examples of each unseen task."""
    members: dict[str, Adapter] = {**trained.experts, "base": untrained(parts, "base")}
    found = dict[str, Rights]()
    for name, examples in unseen.items():
        shots = learning(tasks, [tasks.unseen[name]], plan.shots, 1, Random(f"shots {seed} {name}"))[0]
        for method in ("cem", "random"):
            for each in (False, True):
                how = replace(plan.search, method=method, seed=seed)
                best = adapt(model, parts, members, shots, each=each, how=how, ends=()).weights
                with adaptrix.attach(model, {"best": mixture(parts, members, best)}) as session:
                    rights = _under(model, session, "best", {name: examples})
                found.setdefault(f"{method}, {'a matrix' if each else 'global'}", {}).update(rights)
    return found


def _under(model: Any, session: Session, choice: str | None, sets: Sets) -> Rights:
    with session.use(choice):
        return {name: score_on(model, examples, ()).right for name, examples in sets.items()}


def _dispatched(passes: TwoPasses, sets: Sets) -> tuple[Rights, Rights]:
    """By task the share of right answers, and of wrong choices."""
    rights, wrong = Rights(), Rights()
    for name, examples in sets.items():
        ids, mask = padded([example.prompt for example in examples], passes.model.device, left=True)
        chosen = passes.choose({"input_ids": ids, "attention_mask": mask}).names
        truth = name if name in passes.session.adapters else None
        wrong[name] = sum(one != truth for one in chosen) / len(chosen)
        right = 0.0
        for one in set(chosen):
            part = [example for example, its in zip(examples, chosen, strict=True) if its == one]
            with passes.session.use(one):
                right += score_on(passes.model, part, ()).right * len(part)
        rights[name] = right / len(examples)
    return rights, wrong
