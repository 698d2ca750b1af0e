"""Identification of the architecture and the dimensions that an adapter is for.

Terms: a *family* is an architecture of the registry. It *claims* a ``model_type`` that it lists, and it *has* a module
where one of its roles matches the path. The family is found by the config of a base that the user names
(:func:`by_config`), by the manifest of an injection file (:func:`by_record`), or else by the adapter's module paths
(:func:`by_paths`). *Kept paths* are modules without a role of a family: each becomes a role of its own, named after its
path, and its shape is not checked. An identity is *known* unless all of its paths are kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from keyword import iskeyword
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Adapter, Provenance, Recorded
from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import DEEPEST, Dims, read_dims, unusable
from adaptrix.errors import Problem, RefusedError, errors_in

_NUMBER = re.compile(r"\.(0|[1-9]\d{0,5})(?=\.|$)")

#: the family whose module names Qwen, Gemma and others use too: chosen where nothing else decides
_ORIGINAL = "llama"


@dataclass(frozen=True, slots=True)
class Identity:
    """The architecture of an adapter.

    - ``architecture``: a family, or one of kept paths.
    - ``dims``: as the config or the manifest states them; empty where neither does.
    - ``known``: False where all paths are kept.
    - ``problems``: about the choice.
    - ``alternatives``: families that have every module of the adapter, where the chosen one has none.
    - ``tied``: True where the base's head is its embedding, False where it is not; None where no config says.
    - ``base``: names the base whose config states the dims; empty without one.
    """

    architecture: Architecture
    dims: Dims
    known: bool
    problems: tuple[Problem, ...] = ()
    alternatives: tuple[str, ...] = ()
    tied: bool | None = None
    base: str = ""


def by_config(
    config: Mapping[str, Any], architectures: Collection[Architecture], adapter: Adapter, where: str = "config.json"
) -> Identity:
    """The architecture that claims the config's ``model_type``, or its text model's.

    - ``config``: of a base.
    - ``architectures``: all families.
    - ``adapter``: whose modules must be those of the family.
    - ``where``: names the config in problems.

    A size in the config that is no whole number is an error: without it, nothing would be checked against the base
    that the user named.
    """
    if (claim := claimed(config, architectures)) is not None:
        found, part = claim
        merged = {**config, **part}
        here = any(found.locate(path) or _is_of_other_part(path, config) for path in _paths(adapter))
        matching = () if here else _matching(architectures, adapter)
        names = tuple(architecture.family for architecture in matching)
        dims, problems = read_dims(found.dims, merged), tuple(_dim_problems(found, merged, where))
        known = Identity(found, dims, True, problems, names, tying(config), where)
        return known if part is config or matching else _with_other_parts(known, adapter, config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return _no_type(kind, adapter, where)
    return _unknown(
        adapter,
        f"no architecture claims model_type {kind!r}",
        f"See `adaptrix architectures`; `adaptrix architectures derive MODEL` prints a file for {kind!r}.",
    )


def claimed(
    config: Mapping[str, Any], architectures: Collection[Architecture]
) -> tuple[Architecture, Mapping[str, Any]] | None:
    """The architecture that claims a config's ``model_type``, or its text model's, and the config of that part."""
    families = {kind: architecture for architecture in architectures for kind in architecture.model_types}
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if found := families.get(str(part.get("model_type"))):
            return found, part
    return None


def tying(config: Mapping[str, Any]) -> bool | None:
    """True or False as a base's config says that its embedding and its head are one; None where it does not."""
    text = config.get("text_config")
    parts = (part for part in (config, text) if isinstance(part, Mapping))
    return next((bool(part["tie_word_embeddings"]) for part in parts if "tie_word_embeddings" in part), None)


def family_of(config: Mapping[str, Any], architectures: Collection[Architecture], where: str) -> Identity:
    """The family of a base and its dimensions, by its config alone, where there is no adapter yet.

    ``where`` names the base in problems. Raises :class:`RefusedError` for a family that no architecture describes, and
    for values of the config that are no dimensions.
    """
    nothing = Adapter(where, {}, {}, Provenance(where, "config"))
    found = by_config(config, architectures, nothing, f"{where} config.json")
    if problems := errors_in(found.problems):
        raise RefusedError(problems)
    if not found.known:
        remedy = "See `adaptrix architectures`; `adaptrix architectures derive MODEL` prints a file for a new family."
        said = f"no architecture claims {config.get('model_type')!r}"
        raise RefusedError(Problem("architecture-unknown", where, said, remedy=remedy))
    return found


def _is_of_other_part(path: str, config: Mapping[str, Any]) -> bool:
    """True for a path that names a part beside the text model that the config describes, as ``vision_tower`` does."""
    parts = (key.removesuffix("_config") for key, part in config.items() if isinstance(part, dict))
    return any(part in path for part in parts if part not in ("text", "quantization"))


def _with_other_parts(identity: Identity, adapter: Adapter, config: Mapping[str, Any]) -> Identity:
    """The family of a multimodal base's text model, with the modules of its other parts under their own paths."""
    architecture = identity.architecture
    outside = sorted(path for path in _paths(adapter) if architecture.locate(path) is None)
    if not outside:
        return identity
    said = f"{len(outside)} modules, such as {outside[0]}, are outside the text model"
    found = f"{said} of {config.get('model_type')!r}: they keep their own paths and their shapes are not checked"
    problem = Problem("unverified", adapter.name, found, severity="warning")
    return replace(identity, architecture=_beside(architecture, outside), problems=(*identity.problems, problem))


def _beside(architecture: Architecture, paths: Iterable[str]) -> Architecture:
    """An architecture with kept paths beside its own roles."""
    return replace(architecture, roles=MappingProxyType({**architecture.roles, **kept_paths(paths).roles}))


def by_paths(adapter: Adapter, architectures: Iterable[Architecture]) -> Identity:
    """The architecture that has every module the adapter changes; of several, the likeliest, with a note."""
    matching = _matching(architectures, adapter)
    if not matching:
        return _unknown(adapter, "no architecture has all of these modules", "Name the base with --base MODEL.")
    chosen = matching[0]
    others = sorted(a.family for a in matching[1:])
    says = f"taken for {chosen.family} by its module paths" + (
        f"; {', '.join(others)} would fit as well" if others else ""
    )
    if chosen.family == adapter.family:
        says = f"taken for {chosen.family}, as the file says"
    return Identity(
        chosen, Dims(), known=True, problems=(Problem("family-inferred", adapter.name, says, severity="note"),)
    )


def _paths(adapter: Adapter) -> set[str]:
    return {target.path for target in adapter.deltas}


def _matching(architectures: Iterable[Architecture], adapter: Adapter) -> list[Architecture]:
    """The architectures that have every module the adapter changes, the likeliest first."""
    paths = _paths(adapter)
    matching = [architecture for architecture in architectures if paths and all(map(architecture.locate, paths))]
    return sorted(matching, key=lambda a: _likelihood(a, adapter))


def _likelihood(a: Architecture, adapter: Adapter) -> tuple[bool, bool, bool, int, str]:
    """A sort key, the likeliest first: the family that the file names, one that its config mentions, the original."""
    return a.family != adapter.family, not _named(a, adapter), a.family != _ORIGINAL, len(a.roles), a.family


def _dim_problems(architecture: Architecture, config: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """A problem for sizes in the config that no model has, and a note on dims that it does not state."""
    wrong = dict(unusable(architecture.dims, config))
    for key, value in wrong.items():
        remedy = "Restore the file: nothing can be checked against it as it is."
        yield Problem("base-config", f"{where} {key}", repr(value)[:80], "a whole number, as sizes are", remedy)
    dims = read_dims(architecture.dims, config)
    for stack in sorted({role.depth for role in architecture.roles.values()}):
        if dims.values.get(stack, 0) > DEEPEST:
            found, expected = f"{dims.values[stack]} layers", f"at most {DEEPEST}"
            yield Problem("base-config", f"{where} {stack}", found, expected, "Restore the file.")
    unstated = [name for name in architecture.dims if name not in dims.values]
    if unstated and not wrong:
        found = f"it does not say {', '.join(unstated)}: these are inferred from the tensors"
        yield Problem("dims-unstated", where, found, severity="note")


def _no_type(kind: object, adapter: Adapter, where: str) -> Identity:
    """The identity by a config without ``model_type``: an error, since a user who names a base wants it checked."""
    found = "the key is missing" if kind is None else repr(kind)[:80]
    remedy = "Is this the config.json of a model? Without a base, the adapter's own tensors say its dims."
    problem = Problem("base-config", f"{where} model_type", found, "the name of a family", remedy)
    return Identity(kept_paths(sorted(_paths(adapter))), Dims(), known=False, problems=(problem,))


def _named(architecture: Architecture, adapter: Adapter) -> bool:
    """True where the adapter's config or the name of its base mentions the family."""
    mapping = adapter.provenance.config.get("auto_mapping")
    wrapped = str(mapping.get("base_model_class", "")) if isinstance(mapping, dict) else ""
    base = (adapter.base or "").rpartition("/")[2]
    words = re.split(r"[^a-z0-9]+|(?=for)", f"{wrapped} {base}".lower().replace("_", ""))
    return any(kind.replace("_", "") in words for kind in architecture.model_types)


def _unknown(adapter: Adapter, found: str, remedy: str) -> Identity:
    said = f"{found}: modules keep their own paths and shapes are not checked against a model"
    problem = Problem("architecture-unknown", adapter.name, said, remedy=remedy, severity="warning")
    return Identity(kept_paths(sorted(_paths(adapter))), Dims(), known=False, problems=(problem,))


def kept_paths(paths: Iterable[str]) -> Architecture:
    """An architecture of one role a path, the first number in a path being its layer, nothing checked."""
    roles = {}
    for path in paths:
        pattern = _NUMBER.sub(".{layer}", path, count=1)
        name = f"modules.{pattern}"
        stack = _identifier(pattern.partition(".{layer}")[0])
        roles[name] = Role(name, (pattern,), depth=stack)
    return Architecture("unknown", (), MappingProxyType({}), MappingProxyType(roles))


def _identifier(path: str) -> str:
    """A module path as the name of a dimension, which expressions may mention."""
    name = re.sub(r"\W", "_", path)
    return name if name.isidentifier() and not iskeyword(name) else f"_{name}"


def by_record(adapter: Adapter, recorded: Recorded, architectures: Iterable[Architecture]) -> Identity:
    """The architecture and dims that an injection file records."""
    if not recorded.known:
        return Identity(kept_paths(sorted(_paths(adapter))), recorded.dims, known=False)
    found = next((a for a in architectures if a.family == recorded.family), None)
    if found is None:
        return _unknown(
            adapter,
            f"the file names the architecture {recorded.family!r}, which is not installed here",
            "Install the plugin it came from; `adaptrix architectures` lists what is there.",
        )
    kept = sorted(target.path for target, site in recorded.sites.items() if site.startswith("modules."))
    return Identity(_beside(found, kept) if kept else found, recorded.dims, known=True)
