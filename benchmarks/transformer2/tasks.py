"""Six tasks that have an expert each, tasks that none is for, and their examples, the task told in a sentence.

Sentences and inputs that something is measured on are none that anything has learnt from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from adaptrix_transformer2.dispatch import OTHER, Question
from adaptrix_transformer2.train import Example
from adaptrix_transformer2.train.answers import Tokens

from benchmarks.transformer2.plan import Plan
from benchmarks.world.descriptions import SEEN, UNSEEN, describe
from benchmarks.world.examples import inputs
from benchmarks.world.operations import Affine, Cipher, Composed, Digits, Exchange, Task
from benchmarks.world.splits import families, split
from benchmarks.world.vocabulary import PROMPT, START, rows, tokens, vocabulary

_CLASSES = ("rot", "xch", "rev", "up", "down", "@0", "@1")


@dataclass(frozen=True)
class Tasks:
    """``own``: those with an expert, by its name; ``unseen``: those with none; ``library``: those that the base does
    read of in sentences, the experts' among them."""

    own: dict[str, Task]
    unseen: dict[str, Task]
    library: tuple[Task, ...]
    learned: Digits
    measured: Digits


def tasks_of(seed: int) -> Tasks:
    """Two tasks of each simple family have an expert. Of the unseen six, two are compositions of those, two have
    parameters that no sentence had, and two the base has read of."""
    rng, parts = Random(f"transformer2 {seed}"), split(seed)
    known = {name: [task for task in parts.library if task in every] for name, every in families().items()}
    sums = [task for task in known["affine"] if isinstance(task, Affine) and (task.a == 1 or task.b == 0)]
    places = [task for task in known["places"] if not isinstance(task, Exchange)]
    single = [task for task in known["cipher"] if isinstance(task, Cipher) and len(task.pairs) == 1]
    pairs = {"affine": rng.sample(sums, 2), "cipher": rng.sample(single, 2), "places": rng.sample(places, 2)}
    own = {f"{name} {at}": task for name, pair in pairs.items() for at, task in enumerate(pair, 1)}
    rest = {name: [task for task in tasks if task not in own.values()] for name, tasks in known.items()}
    unseen = {
        "places, affine": Composed(own["places 1"], own["affine 1"]),
        "places, cipher": Composed(own["places 2"], own["cipher 2"]),
        "new affine": next(task for task in parts.parameters if isinstance(task, Affine)),
        "new cipher": next(task for task in parts.parameters if isinstance(task, Cipher)),
    }
    library = tuple(task for task in parts.library if task not in unseen.values())
    unseen |= {"read cipher": rng.choice(rest["cipher"]), "read places": rng.choice(rest["places"])}
    return Tasks(own, unseen, library, *inputs(seed))


def asked(tasks: Tasks) -> Question:
    """Which task a prompt is about: a start after it is the question, a word of the notation the answer."""
    known = vocabulary()
    names = {name: (known[word],) for name, word in zip((*tasks.own, OTHER), _CLASSES, strict=True)}
    return Question((known[START],), names)


def name_of(tasks: Tasks, task: Task) -> str:
    """The class of a task."""
    return next((name for name, own in tasks.own.items() if own == task), OTHER)


def reward(wanted: Example, answer: Tokens) -> float:
    """The share of the digits that are right."""
    return sum(one == other for one, other in zip(wanted.response, answer, strict=False)) / len(wanted.response)


def example(task: Task, digits: Digits, ways: Sequence[int], rng: Random) -> Example:
    """A start, a sentence, the digits and an arrow; the answer is as many digits."""
    start, *rest = rows(task, digits[None])[0].tolist()
    said = tokens(describe(task, rng.choice(ways)))
    return Example((start, *said, *rest[: PROMPT - 1]), tuple(rest[PROMPT - 1 :]))


def learning(tasks: Tasks, some: Iterable[Task], count: int, held: int, rng: Random) -> tuple[list[Example], ...]:
    """Examples to learn from and others to choose the best step by, of tasks drawn at random."""
    choice, most = tuple(some), len(tasks.learned) - held
    sets = []
    for number, (low, high) in ((count, (0, most)), (held, (most, len(tasks.learned)))):
        drawn = [(rng.choice(choice), rng.randrange(low, high)) for _ in range(number)]
        sets.append([example(task, tasks.learned[at], SEEN, rng) for task, at in drawn])
    return tuple(sets)


def measuring(tasks: Tasks, task: Task, plan: Plan, seed: int) -> list[Example]:
    """What a task is measured on: inputs and sentences that nothing was trained on, each input in two sentences."""
    rng = Random(f"measured {seed} {task}")
    return [example(task, digits, UNSEEN, rng) for digits in tasks.measured[: plan.measured] for _ in range(2)]
