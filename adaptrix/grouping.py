"""Problems that differ in their place alone, as one: ``q_proj of layers 0-27 (28, the first …): …``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptrix.wording import ranges, some

if TYPE_CHECKING:
    from adaptrix.errors import Problem

_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=[. ]|$)|^\d{1,6}(?=\.)")
_TARGET = re.compile(r"(?P<before>(?:[^():]*: )?)\S+ \((?P<path>\S+)\)")  # a site, and its module
_NAMES = 10
_FEW = 2  # so many places are named in full


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """Problems in order of their first of a kind; those that say the same of several places are one.

    The place of such a problem is every module of the group with the layers that it is in, how many places there are,
    and the first, by its whole name. No problem is lost: each is in the list that was given.
    """
    groups: dict[Problem, list[str]] = {}
    for problem in problems:
        groups.setdefault(replace(problem, where=""), []).append(problem.where)
    return [replace(said, where=_place(list(dict.fromkeys(places)))) for said, places in groups.items()]


def _place(places: Sequence[str]) -> str:
    """Several places as one; a few as they are."""
    if len(places) <= _FEW:
        return ", ".join(places)
    modules: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for place in places:
        name, stack, numbers = _parsed(place)
        modules.setdefault((name, stack), []).append(numbers)
    names: dict[str, list[str]] = {}
    for (name, stack), positions in modules.items():
        names.setdefault(_positions(stack, positions), []).append(name)
    said = [f"{some(dict.fromkeys(found), _NAMES)}{f' of {where}' if where else ''}" for where, found in names.items()]
    return f"{some(said, _NAMES)} ({len(places)}, the first {places[0]})"


def _parsed(place: str) -> tuple[str, str, tuple[int, ...]]:
    """The name of a place without its numbers, what the numbers count, and the numbers.

    ``layers.0.q (model.layers.0.self_attn.q_proj)`` is ``q_proj``, ``layers``, ``(0,)``; a place that is no path of
    modules with a number in it is its own name.
    """
    match = _TARGET.fullmatch(place)
    before, path = (match["before"], match["path"]) if match else ("", place)
    numbers = _NUMBER.findall(path)
    if not numbers or "/" in path:
        return place, "", ()
    steps = _NUMBER.sub("{}", path).split(".")
    counted = [steps[i - 1] if i else "" for i, step in enumerate(steps) if step.partition(" ")[0] == "{}"]
    return before + steps[-1], ", ".join(counted), tuple(map(int, numbers))


def _positions(stack: str, numbers: Sequence[tuple[int, ...]]) -> str:
    """The layers, and the experts, of a module: ``layers 0-27``; nothing for one without numbers."""
    if not stack:
        return ""
    columns = zip(stack.split(", "), zip(*numbers, strict=True), strict=True)
    return ", ".join(f"{name} {ranges(sorted(set(column)))}" for name, column in columns)
