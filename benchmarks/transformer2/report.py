"""All seeds together: means with 95% intervals, as a table, a plot and JSON; and whether the goals were reached."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

Seed = dict[str, Any]
Means = dict[str, dict[str, list[float]]]

OWN, STREAM, UNSEEN, WRONG = "own task", "stream of the experts' tasks", "unseen tasks", "sent to a wrong expert"
DIFFERENCES = "differences, seed by seed"
#: Student's t at 97.5%, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def report(seeds: Sequence[Seed], results: Path) -> None:
    """Prints the tables, and writes ``results.json`` and ``results.svg``."""
    tables = {OWN: _own, STREAM: _stream, UNSEEN: _unseen, WRONG: _wrong}
    found = {where: rows(seeds) for where, rows in tables.items()}
    found[DIFFERENCES] = _differences(found)
    numbers, lines = seeds[0]["numbers"], list[str]()
    for where, methods in found.items():
        lines += [f"| {where} | {len(seeds)} seeds |", "| --- | --- |"]
        lines += [f"| {method} | {said(values)} |" for method, values in methods.items()] + [""]
    goals = reached(found)
    lines += [f"{goal}: {'yes' if met else 'no'}" for goal, met in goals.items()]
    lines += [f"parameters: {', '.join(f'{name} {count:,}' for name, count in numbers.items())}"]
    lines += [f"seconds of one core, a seed: {said([one['seconds'] for one in seeds], 1)}"]
    print("\n".join(lines))
    told = {"means": found, "goals": goals, "numbers": numbers, "seeds": list(seeds)}
    (results / "results.json").write_text(json.dumps(told, indent=1) + "\n")
    _plot(found, results / "results.svg")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95% interval over seeds (0 for one seed)."""
    mean, count = sum(values) / len(values), len(values)
    if count == 1:
        return mean, 0.0
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, _T.get(count - 1, 1.96) * deviation / sqrt(count)


def said(values: Sequence[float], digits: int = 3) -> str:
    """Mean and half width."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def reached(found: Means) -> dict[str, bool]:
    """The goals, and whether they are reached: what is to be above has to be so by more than its interval."""
    own, differences, goals = found[OWN], found[DIFFERENCES], dict[str, bool]()
    for way in ("answers", "rewards"):
        mean, half = interval(own[f"LoRA, {way}"])
        goal = f"SVF by {way} within the interval of LoRA by {way}, or above"
        goals[goal] = interval(own[f"SVF, {way}"])[0] >= mean - half
    for way in _ABOVE:
        mean, half = interval(differences[way])
        goals[f"above 0: {way}"] = mean > half
    return goals


_SINGLE, _BASE = "best single expert, stream", "base, unseen"
_ABOVE = (
    *(f"{way} − {_SINGLE}" for way in ("prompt", "classifier")),
    *(f"{way} − {_BASE}" for way in ("prompt", "classifier", "CEM, global", "CEM, a matrix")),
)


def _differences(found: Means) -> dict[str, list[float]]:
    """Seed by seed, so that what seeds have in common cancels."""
    own, stream, unseen = found[OWN], found[STREAM], found[UNSEEN]
    pairs = {f"SVF − LoRA, {way}": (own[f"SVF, {way}"], own[f"LoRA, {way}"]) for way in ("answers", "rewards")}
    for way in _ABOVE:
        first, _, other = way.partition(" − ")
        where = stream if other == _SINGLE else unseen
        pairs[way] = (where[first], where[other.rpartition(",")[0]])
    for way in ("global", "a matrix"):
        pairs[f"CEM − random, {way}"] = (unseen[f"CEM, {way}"], unseen[f"random, {way}"])
    return {way: [one - two for one, two in zip(*pair, strict=True)] for way, pair in pairs.items()}


def _own(seeds: Sequence[Seed]) -> dict[str, list[float]]:
    ways: dict[str, Callable[[Seed], dict[str, float]]] = {
        "base": lambda one: one["all"]["base"],
        "SVF, answers": lambda one: {name: one["all"][name][name] for name in _experts(one)},
        "SVF, rewards": lambda one: one["own"]["svf rl"],
        "LoRA, answers": lambda one: one["own"]["lora"],
        "LoRA, rewards": lambda one: one["own"]["lora rl"],
    }
    return {way: [_mean(get(one), _experts(one)) for one in seeds] for way, get in ways.items()}


def _stream(seeds: Sequence[Seed]) -> dict[str, list[float]]:
    """Every task of an expert as often as the others."""
    ways = ("base", "uniform", "prompt", "classifier")
    means = [{way: _mean(one["all"][way], _experts(one)) for way in (*ways, *_experts(one))} for one in seeds]
    single = [max(one[name] for name in _experts(seed)) for one, seed in zip(means, seeds, strict=True)]
    return {
        "base": [one["base"] for one in means],
        "best single expert": single,
        "uniform mixture": [one["uniform"] for one in means],
        "prompt": [one["prompt"] for one in means],
        "classifier": [one["classifier"] for one in means],
        "each task's own expert": _own(seeds)["SVF, answers"],
    }


def _unseen(seeds: Sequence[Seed]) -> dict[str, list[float]]:
    means = [{way: _mean(rights, _new(one)) for way, rights in one["all"].items()} for one in seeds]
    names = {"uniform mixture": "uniform", "CEM, global": "cem, global", "CEM, a matrix": "cem, a matrix"}
    names |= {way: way for way in ("prompt", "classifier", "random, global", "random, a matrix")}
    best = [max(one[name] for name in _experts(seed)) for one, seed in zip(means, seeds, strict=True)]
    found = {"base": [one["base"] for one in means], "best single expert": best}
    return found | {way: [one[key] for one in means] for way, key in names.items()}


def _wrong(seeds: Sequence[Seed]) -> dict[str, list[float]]:
    """The share of prompts that went to another expert than they should; unseen tasks should go to the base."""
    return {
        f"{way}, {where}": [_mean(one["wrong"], [f"{way} {name}" for name in names(one)]) for one in seeds]
        for way in ("prompt", "classifier")
        for where, names in (("stream", _experts), ("unseen", _new))
    }


def _experts(one: Seed) -> list[str]:
    return list(one["own"]["lora"])


def _new(one: Seed) -> list[str]:
    return [name for name in one["tasks"] if name not in _experts(one)]


def _mean(rights: dict[str, float], names: Sequence[str]) -> float:
    return sum(rights[name] for name in names) / len(names)


def _plot(found: Means, path: Path) -> None:
    rcParams["svg.hashsalt"] = "transformer2"
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, where in zip(figure.subplots(1, 3), (OWN, STREAM, UNSEEN), strict=True):
        bars = {method: interval(values) for method, values in found[where].items()}
        heights, halves = zip(*bars.values(), strict=True)
        axes.barh(list(bars), heights, xerr=halves, color="#5b7fa6", ecolor="#333333", capsize=2)
        axes.invert_yaxis()
        axes.set(title=where, xlim=(0, 1), xlabel="right answers")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
