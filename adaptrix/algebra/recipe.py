"""Recipes of combinations, and the checks of a recipe and of the adapters that it is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

from adaptrix.algebra.alignment import Alignment
from adaptrix.algebra.factors import identical
from adaptrix.algebra.methods import FACTORWISE, METHODS, SPARSE
from adaptrix.algebra.operands import Operand
from adaptrix.errors import Problem, RefusedError, UsageError
from adaptrix.planning.features import CONDITIONS
from adaptrix.tensor import Tensor
from adaptrix.wording import nearest


@dataclass(frozen=True)
class Recipe:
    """The method of a combination, and its settings.

    - ``weights``: a finite number other than 0 for each adapter; None gives each an equal share.
    - ``method``: ``cat`` (exact), ``svd``, ``linear``, ``ties``, ``dare`` or ``dare-ties``.
    - ``rank``: of ``svd`` alone; by default the largest of the adapters' own.
    - ``density``: the share of numbers that ``ties`` and ``dare`` keep, above 0 and at most 1; 0.5 by default.
    - ``seed``: of the numbers that ``dare`` drops.
    - ``drop_extras``: leave out trained heads, biases and tokens, which are no deltas.
    """

    weights: tuple[float, ...] | None = None
    method: str = "cat"
    rank: int | None = None
    density: float | None = None
    seed: int = 0
    drop_extras: bool = False

    def shares(self, count: int) -> tuple[float, ...]:
        return self.weights if self.weights is not None else (1.0 / count,) * count


def require_recipe(recipe: Recipe, subjects: Sequence[Any]) -> None:
    """Raises :class:`UsageError` with everything in a recipe that makes no sense for these adapters."""
    count, sparse = len(subjects), recipe.method in SPARSE
    weights: Sequence[Any] | None = recipe.weights  # whatever the caller gave
    problems = []
    if not count:
        problems.append(Problem("option", "adapters", "none", "at least one"))
    if weights is not None and len(weights) != count:
        found = f"{len(weights)} weight{'s' if len(weights) != 1 else ''} for {count} adapters"
        problems.append(Problem("option", "weights", found, "one each", "As in --weights 0.7,0.3."))
    if bad := [w for w in weights or () if not isinstance(w, Real) or not isfinite(w) or not w]:
        remedy = "An adapter of weight 0 adds nothing: leave it out."
        problems.append(Problem("option", "weights", ", ".join(map(str, bad)), "finite numbers other than 0", remedy))
    if recipe.method not in METHODS:
        expected, remedy = f"one of {', '.join(METHODS)}", nearest(str(recipe.method), METHODS)
        problems.append(Problem("option", "method", repr(recipe.method)[:80], expected, remedy))
    if recipe.rank is not None and (recipe.method != "svd" or recipe.rank < 1):
        found = f"{recipe.rank} with {recipe.method}"
        problems.append(Problem("option", "rank", found, "a whole number of at least 1 with --method svd"))
    if recipe.density is not None and not (sparse and 0 < recipe.density <= 1):
        found, expected = f"{recipe.density} with {recipe.method}", f"above 0, at most 1, with {' or '.join(SPARSE)}"
        problems.append(Problem("option", "density", found, expected))
    if recipe.seed < 0:
        problems.append(Problem("option", "seed", f"{recipe.seed}", "a whole number of at least 0"))
    if problems:
        raise UsageError(problems)


def require_sums(operands: Sequence[Operand], aligned: Alignment, recipe: Recipe) -> None:
    """Raises :class:`RefusedError` with every delta and every extra that cannot be added up."""
    problems = [*_dora_problems(operands), *_condition_problems(operands)]
    if not recipe.drop_extras:
        problems += _extra_problems(operands, aligned)
    if recipe.method in FACTORWISE:
        problems += _rank_problems(aligned, recipe.method)
    if problems:
        raise RefusedError(problems)


def _dora_problems(operands: Sequence[Operand]) -> Iterator[Problem]:
    for operand in operands:
        sites = [site for site, delta in operand.deltas.items() if delta.magnitude is not None]
        if sites:
            found = f"{len(sites)} deltas are DoRA, which divides by the norm of the base's weight: no sum of low ranks"
            remedy = "Merge each into the base with `adaptrix merge`, and `adaptrix extract` a LoRA from the result."
            yield Problem("kind-unsupported", f"{operand.name}, {sites[0]}", found, "plain LoRA", remedy)


def _condition_problems(operands: Sequence[Operand]) -> Iterator[Problem]:
    configs = [operand.bound.adapter.provenance.config for operand in operands]
    for key in CONDITIONS:  # a sum could have only one
        values = [config.get(key) or None for config in configs]
        if any(value != values[0] for value in values):
            found = f"{key} is {str(values)[:200]}"
            yield Problem(
                "conditional", "adapters", found, "one condition for all, for it holds for the sum as a whole"
            )


def _extra_problems(operands: Sequence[Operand], aligned: Alignment) -> Iterator[Problem]:
    """A problem for every extra that replaces a tensor of the base: only equal copies of the base's own can be kept."""
    remedy = "--drop-extras leaves them out; `adaptrix convert` keeps them with their adapter."
    held: dict[str, Tensor] = {}
    for operand in operands:
        for key, extra in operand.bound.adapter.extras.items():
            if extra.kind == "shared":  # by the deltas, which are LoRAs in a sum
                continue
            same = identical(held.setdefault(key, extra.tensor), extra.tensor)
            if extra.kind != "base_weight" or aligned.respelled or not same:
                use = "replaces the base's" if extra.acts else "its own training uses"
                found = f"it is no delta but a tensor that {use}"
                yield Problem("extra-unsupported", f"{operand.name}, {key}", found, "deltas alone", remedy)


def _rank_problems(aligned: Alignment, method: str) -> Iterator[Problem]:
    ranks = {site: sorted({delta.rank for delta in row if delta is not None}) for site, row in aligned.rows.items()}
    mixed = [site for site, found in ranks.items() if len(found) > 1]
    if mixed:
        found = f"ranks {' and '.join(map(str, ranks[mixed[0]]))}, and so at {len(mixed)} of {len(ranks)} sites"
        remedy = "Use --method cat or svd, or bring them to one rank with `adaptrix resize`."
        yield Problem("rank", str(mixed[0]), found, f"one rank, for {method} adds factors number by number", remedy)
