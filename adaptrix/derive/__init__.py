"""Derivation of a family that the registry does not know, from nothing but a model's config.json.

transformers builds the model on the meta device, dozens of times over, each time with one number of the
config changed; the sizes of the weights that change with it show which dimensions they are made of. What this
does not settle is left free or noted, and printed as ``# unverified``: never guessed in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import Alternative, names_in
from adaptrix.derive.defaults import rules
from adaptrix.derive.expressions import ExpressionSearch
from adaptrix.derive.naming import dim_names, role_names
from adaptrix.derive.roles import Evidence, describe
from adaptrix.derive.stacks import Stacks
from adaptrix.derive.survey import Family, Model, changed, family_of, quiet, variations
from adaptrix.derive.toml import to_toml
from adaptrix.errors import AdaptrixError, refuse

__all__ = ["derive", "to_toml"]

_LARGEST_FILE = 10 << 20
_SHALLOW = 4  # layers: enough for what differs among the first ones


def derive(config: Mapping[str, Any] | Path) -> Architecture:
    """The architecture of the model that a config.json (its path, its folder or its content) describes.

    Its roles have every weight that an adapter can be for; a role's ``note`` says what is not certain.
    Raises :class:`RefusedError` for a config that transformers cannot build or that describes an absurdly
    large model, :class:`UsageError` where torch or transformers is missing.
    """
    given = config if isinstance(config, Mapping) else _read(config)
    with quiet():
        return _derive(given)


def _derive(given: Mapping[str, Any]) -> Architecture:
    family, full = family_of(given)
    deep = family.build(full)
    stacks = Stacks.of(family, full, deep)
    config_of_models, base = _shallow(family, full, deep, stacks)
    models = (base, *variations(family, config_of_models, base))
    telling, counting = _telling(models, stacks), dict.fromkeys(stacks.keys.values())
    names = dim_names([*telling, *counting])
    vectors = {names[key]: tuple(model.numbers.get(key, 0) for model in models) for key in telling}
    depths = {stack: names[key] for stack, key in stacks.keys.items()}
    depths |= {stack: f"{role_names([stack])[stack]}_layers" for stack in stacks.uncounted}
    roles = _roles(Evidence(family, deep, models, ExpressionSearch(vectors), stacks, depths))
    dims = rules(given, deep, names, family)
    dims |= {depths[stack]: (Alternative(count),) for stack, count in stacks.uncounted.items()}
    return Architecture(
        family=re.sub(r"[^a-z0-9_]", "_", family.model_type.lower()),
        model_types=(family.model_type,),
        dims=MappingProxyType({name: dims[name] for name in dims if name in _mentioned(roles.values(), dims)}),
        roles=MappingProxyType(roles),
        prefixes=family.prefixes,
        origin="derived",
    )


def _read(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise refuse("base-config", file, "more than 10 MB", "the config.json of a model")
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refuse("base-config", file, str(error), "a readable config.json") from None
    if not isinstance(content, dict):
        raise refuse("base-config", file, "not a JSON object", "the config.json of a model")
    return content


def _shallow(family: Family, config: Mapping[str, Any], deep: Model, stacks: Stacks) -> tuple[Mapping[str, Any], Model]:
    """A config with fewer layers, and its model, if it has all the same weights: it is built dozens of times."""
    depths = {key: min(deep.numbers[key], _SHALLOW) for key in stacks.keys.values()}
    fewer = changed(config, depths, lists=True)
    try:
        model = family.build(fewer)
    except AdaptrixError:
        return config, deep
    same = set(map(stacks.pattern, model.weights)) == set(map(stacks.pattern, deep.weights))
    return (fewer, model) if same else (config, deep)


def _telling(models: tuple[Model, ...], stacks: Stacks) -> list[str]:
    """The config keys that a size depends on, and those that could not be varied and so may matter. Depths are left
    out: they could not be varied either, but what they count is known."""
    base = models[0]
    bearing: set[str] = set()
    varied: set[str] = set()
    for model in models[1:]:
        moved = {key for key, value in base.numbers.items() if model.numbers.get(key) != value}
        varied |= moved
        if any(weight.shape != base.weights[path].shape for path, weight in model.weights.items()):
            bearing |= moved
    depths = set(stacks.keys.values())
    telling = [key for key in base.numbers if key in bearing - depths]
    return telling + [key for key in base.numbers if key not in varied | depths | bearing]


def _roles(evidence: Evidence) -> dict[str, Role]:
    patterns: dict[str, list[str]] = {}
    for path in evidence.deep.weights:
        patterns.setdefault(evidence.stacks.pattern(path), []).append(path)
    names = role_names(patterns)
    return {names[pattern]: describe(evidence, names[pattern], pattern, paths) for pattern, paths in patterns.items()}


def _mentioned(roles: Iterable[Role], dims: Mapping[str, tuple[Alternative, ...]]) -> set[str]:
    """The dimensions that the roles need, and those that these are computed from."""
    found: set[str] = set()
    texts = [text for role in roles for text in (role.inp, role.out, role.experts) if text]
    texts += [role.depth for role in roles if role.layered]
    while texts:
        new = (names_in(texts.pop()) & dims.keys()) - found
        found |= new
        texts += [str(option.value) for name in new for option in dims[name][1:]]
    return found
