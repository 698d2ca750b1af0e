"""Search for the weights of a mixture: the cross-entropy method as published, and draws at random beside it.

A candidate is a matrix of weights ``[experts, groups]`` in [0, 1]: one group for all matrices, or one for each. Both
searches begin with the uniform mixture and judge as many candidates; the better share of right answers wins, and of
equal ones the greater log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptrix import Problem, UsageError
from adaptrix.extend import renamed_parameters

Weights = NDArray[np.float64]


class Score(NamedTuple):
    """Quality of a candidate, compared from left to right."""

    right: float
    likelihood: float


Objective = Callable[[Weights], Score]


@dataclass(frozen=True, slots=True)
class Search:
    """``generations`` of ``population`` candidates each, the incumbent among them; the ``elites`` shape the next.

    ``spread`` is the first standard deviation of every weight; the first mean is 1 / experts.
    """

    method: str = "cem"
    population: int = 32
    elites: int = 6
    generations: int = 8
    spread: float = 0.5
    seed: int = 0

    @property
    def evaluations(self) -> int:
        """The number of candidates that are scored, by either method; an incumbent is scored once."""
        return 1 + self.generations * (self.population - 1)


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The best weights ``[experts, groups]``, their score, and the best score after each generation."""

    weights: Weights
    score: Score
    history: tuple[Score, ...]
    evaluations: int


def normalised(weights: Weights) -> Weights:
    """Weights that sum to 1 over the experts ``[experts, groups]``.

    Where all are 0 they say nothing, and 0 times the 1/0 of their sum is not a number: there the experts count alike.
    """
    sums = weights.sum(0, keepdims=True)
    return np.where(sums > 0, weights / np.where(sums > 0, sums, 1), 1 / len(weights))


@renamed_parameters(how="options")
def search(objective: Objective, experts: int, groups: int = 1, options: Search | None = None) -> SearchResult:
    """The best of the candidates that were judged. Raises :class:`UsageError` for settings that make no sense."""
    options = options or Search()
    require_valid(options)
    generations = SEARCHES[options.method](experts, groups, options)
    uniform = np.full((experts, groups), 1 / experts)
    scored, history = [(objective(uniform), uniform)], list[Score]()
    population = next(generations)
    while True:
        incumbent = _best(scored)
        scored = [incumbent, *((objective(one), one) for one in population)]
        history.append(_best(scored)[0])
        if len(history) == options.generations:
            break
        population = generations.send(scored)
    score, weights = _best(scored)
    return SearchResult(weights, score, tuple(history), options.evaluations)


def require_valid(options: Search) -> None:
    """Raises :class:`UsageError` with every setting that makes no sense."""
    known = options.method in SEARCHES
    problems = [] if known else [Problem("option", "method", repr(options.method)[:80], ", ".join(SEARCHES))]
    for name, least in (("population", 2), ("elites", 1), ("generations", 1), ("seed", 0)):
        value = getattr(options, name)
        if type(value) is not int or value < least:
            problems.append(Problem("option", name, repr(value)[:80], f"a whole number of at least {least}"))
    if not problems and options.elites > options.population:
        problems.append(
            Problem("option", "elites", f"{options.elites} of {options.population}", "at most the population")
        )
    if not 0 < options.spread < float("inf"):
        problems.append(Problem("option", "spread", repr(options.spread)[:80], "a finite number above 0"))
    if problems:
        raise UsageError(problems)


_Scored = list[tuple[Score, Weights]]
_Generations = Generator[list[Weights], _Scored, None]


def _best(scored: _Scored) -> tuple[Score, Weights]:
    """The first of the best: an incumbent is only replaced by something better."""
    return max(scored, key=lambda one: one[0])


def _cem(experts: int, groups: int, options: Search) -> _Generations:
    generator = np.random.default_rng(options.seed)
    mean, spread = np.full((experts, groups), 1 / experts), np.full((experts, groups), options.spread)
    while True:
        drawn = mean + spread * generator.standard_normal((options.population - 1, experts, groups))
        scored = yield list(drawn.clip(0, 1))
        elites = np.stack([weights for _, weights in sorted(scored, key=lambda one: one[0])[-options.elites :]])
        mean, spread = elites.mean(0), elites.std(0)


def _random(experts: int, groups: int, options: Search) -> _Generations:
    generator = np.random.default_rng(options.seed)
    while True:
        yield list(generator.random((options.population - 1, experts, groups)))


#: what proposes candidates, by the name that ``Search.method`` gives it
SEARCHES: Mapping[str, Callable[[int, int, Search], _Generations]] = {"cem": _cem, "random": _random}
