"""The rules of the dimensions: the config key of each, and its value where a config lacks the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptrix.architecture.dims import Alternative, Rule
from adaptrix.base.meta_model import config_of
from adaptrix.derive.expressions import ExpressionSearch
from adaptrix.derive.survey import Family, Model, changed, guarded, numbers_in
from adaptrix.errors import AdaptrixError


def rules(given: Mapping[str, Any], deep: Model, names: Mapping[str, str], family: Family) -> dict[str, Rule]:
    """A rule for each dimension. ``given``: the config as published; ``names``: config key -> dimension.

    A key that the config lacks has a value in transformers all the same: computed from others, in which
    case the rule says how, or a default, which the rule then states.
    """
    stated = numbers_in(given)
    completed = list(_completed(given, stated))
    present = {names[key]: tuple(m.get(key, 0) for m in completed) for key in names if _stated(key, stated, family)}
    search = ExpressionSearch(present)
    found = {}
    for key, name in names.items():
        options = [Alternative(spelling) for spelling in (key, *family.aliases.get(key, ()))]
        if name not in present:
            match = search.find(tuple(model.get(key, 0) for model in completed))
            options.append(Alternative(match.expression if match and not match.doubt else deep.numbers[key]))
        found[name] = tuple(options)
    return found


def _stated(key: str, stated: Mapping[str, int], family: Family) -> bool:
    return any(spelling in stated for spelling in (key, *family.aliases.get(key, ())))


def _completed(given: Mapping[str, Any], stated: Mapping[str, int]) -> list[dict[str, int]]:
    """The config as transformers completes it, as it is and with each of its numbers doubled."""
    trials = [given, *(changed(given, {key: 2 * value}) for key, value in stated.items())]
    return [numbers for trial in trials if (numbers := _numbers(trial))]


def _numbers(config: Mapping[str, Any]) -> dict[str, int] | None:
    """A config's numbers, completed; None where transformers no longer accepts it."""
    try:
        return numbers_in(guarded(lambda: config_of(config).to_dict()))
    except AdaptrixError:
        return None
