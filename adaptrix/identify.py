"""Says which architecture an adapter is for, and with which dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adaptrix.adapter import Adapter, Recorded
from adaptrix.architecture import Architecture, Role
from adaptrix.dims import Dims, read_dims
from adaptrix.errors import Problem

_NUMBER = re.compile(r"\.(0|[1-9]\d{0,5})(?=\.|$)")

#: whose module names Qwen, Gemma and others took over: where nothing else tells, the plainest of them
_ORIGINAL = "llama"


@dataclass(frozen=True, slots=True)
class Identity:
    """The architecture chosen, the dimensions known, and what should be said about the choice.

    ``known`` is False where no family fits and module paths are kept as they are.
    """

    architecture: Architecture
    dims: Dims
    known: bool
    problems: tuple[Problem, ...] = ()


def by_config(config: Mapping[str, Any], architectures: Iterable[Architecture], adapter: Adapter) -> Identity:
    """The architecture that claims the config's ``model_type`` (or its text model's)."""
    families = {kind: architecture for architecture in architectures for kind in architecture.model_types}
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if found := families.get(str(part.get("model_type"))):
            return Identity(found, read_dims(found.dims, {**config, **part}), known=True)
    kind = config.get("model_type")
    return _unknown(
        adapter,
        f"no architecture claims model_type {kind!r}",
        f"See `adaptrix architectures`; `adaptrix architectures derive MODEL` prints a file for {kind!r}.",
    )


def by_paths(adapter: Adapter, architectures: Iterable[Architecture]) -> Identity:
    """The architecture that has every module the adapter changes; several that agree are as good as one."""
    paths = {target.path for target in adapter.deltas}
    fitting = [a for a in architectures if paths and all(a.locate(path) for path in paths)]
    if not fitting:
        return _unknown(adapter, "no architecture has all of these modules", "Name the base with --base MODEL.")
    chosen = min(fitting, key=lambda a: (not _named(a, adapter), a.family != _ORIGINAL, len(a.roles), a.family))
    others = [a.family for a in fitting if a is not chosen]
    says = f"taken for {chosen.family} by its module paths" + (
        f"; {', '.join(others)} would fit as well" if others else ""
    )
    return Identity(chosen, Dims(), known=True, problems=(Problem("family", adapter.name, says, severity="note"),))


def _named(architecture: Architecture, adapter: Adapter) -> bool:
    """Whether the adapter's config or the name of its base mentions the family."""
    mapping = adapter.provenance.config.get("auto_mapping")
    wrapped = str(mapping.get("base_model_class", "")) if isinstance(mapping, dict) else ""
    base = (adapter.base or "").rpartition("/")[2]
    words = re.split(r"[^a-z0-9]+|(?=for)", f"{wrapped} {base}".lower().replace("_", ""))
    return any(kind.replace("_", "") in words for kind in architecture.model_types)


def _unknown(adapter: Adapter, found: str, remedy: str) -> Identity:
    paths = sorted({target.path for target in adapter.deltas})
    said = f"{found}: modules keep their own paths and shapes are not checked against a model"
    problem = Problem("unknown-family", adapter.name, said, remedy=remedy, severity="warning")
    return Identity(kept_paths(paths), Dims(), known=False, problems=(problem,))


def kept_paths(paths: Iterable[str]) -> Architecture:
    """An architecture of one role a path, the first number in a path being its layer, nothing checked."""
    roles = {}
    for path in paths:
        pattern = _NUMBER.sub(".{layer}", path, count=1)
        name = f"modules.{pattern}"
        stack = pattern.partition(".{layer}")[0].replace(".", "_")
        roles[name] = Role(name, (pattern,), depth=stack)
    return Architecture("unknown", (), MappingProxyType({}), MappingProxyType(roles))


def by_record(adapter: Adapter, recorded: Recorded, architectures: Iterable[Architecture]) -> Identity:
    """The architecture and dims that an injection file remembers."""
    if not recorded.known:
        return Identity(kept_paths(sorted({target.path for target in adapter.deltas})), recorded.dims, known=False)
    found = next((a for a in architectures if a.family == recorded.family), None)
    if found is None:
        return _unknown(
            adapter,
            f"the file names the architecture {recorded.family!r}, which is not installed here",
            "Install the plugin it came from; `adaptrix architectures` lists what is there.",
        )
    return Identity(found, recorded.dims, known=True)
