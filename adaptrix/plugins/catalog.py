"""The catalog of this installation: every record that Adaptrix and its plugins contribute.

A :class:`Catalog` is a value made on first need, not a global that imports fill. Each plugin is loaded
on its own and whole or not at all: one that fails, claims what is another's or misspells a hook is left
out and remembered with its error, and the rest works.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptrix.architecture import Architecture
from adaptrix.architecture.dialect import Dialect
from adaptrix.errors import Problem, RefusedError
from adaptrix.plugins import installed
from adaptrix.plugins.contribution import record_name
from adaptrix.plugins.plugin import HOOKS, Plugin, load, named, own_plugin
from adaptrix.records import Command, Format, Generator, Source

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Claim = tuple[str, str]  # kind and name

#: the command line is above this module and has its own commands in its own table; a test compares
OWN_COMMANDS = (
    *("convert", "merge", "fidelity", "inspect", "check", "combine", "resize", "diff", "extract"),
    *("architectures", "explain", "plugins", "completion"),
)


class Catalog:
    """The records of all plugins, validated, each name claimed once.

    ``allow``: the plugins that may load, by entry point or distribution; all where None. ``strict``: a
    plugin that fails is a :class:`RefusedError` instead of an entry in :attr:`problems`. ``hooks``: those
    to call; a catalog of commands alone imports no more than plugins' own modules.
    """

    def __init__(
        self,
        *,
        allow: Collection[str] | None = None,
        strict: bool = False,
        entry_points: Iterable[EntryPoint] = (),
        hooks: Iterable[str] = HOOKS,
    ) -> None:
        hooks = tuple(hooks)
        allowed = None if allow is None else {_folded(name): name for name in allow}
        present = sorted(((named(entry), entry) for entry in entry_points), key=lambda pair: _order(pair[0]))
        found = [load(entry, plugin, hooks) if _may_load(plugin, allowed) else plugin for plugin, entry in present]
        self.plugins = (*_settled(own_plugin(hooks), found), *_missing(allowed or {}, found))
        if strict and self.problems:
            raise RefusedError(replace(problem, severity="error") for problem in self.problems)

    @classmethod
    def from_environment(cls, hooks: Iterable[str] = HOOKS) -> Catalog:
        """All installed plugins, or those that ``ADAPTRIX_PLUGINS`` names; ``ADAPTRIX_STRICT=1`` is strict.

        What is installed is looked up at every call and loaded again only where that has changed.
        """
        strict = os.environ.get("ADAPTRIX_STRICT", "") not in ("", "0")
        return _remembered(installed.allowed(), strict, installed.every_entry_point(), tuple(hooks))

    @cached_property
    def architectures(self) -> tuple[Architecture, ...]:
        """By family, each with its dialects."""
        found: dict[str, dict[str, Dialect]] = {}
        for dialect in self._records("adaptrix_dialects"):
            found.setdefault(dialect.family, {})[dialect.format] = dialect
        families = sorted(self._records("adaptrix_architectures"), key=record_name)
        return tuple(
            replace(each, dialects=MappingProxyType({**each.dialects, **found.get(each.family, {})}))
            for each in families
        )

    @property
    def formats(self) -> tuple[Format, ...]:
        """In the order in which they are asked: plugins' by distribution, then Adaptrix's own, whose
        PEFT format takes every folder with an adapter_config.json."""
        return self._records("adaptrix_formats", own_last=True)

    @property
    def writable(self) -> Mapping[str, Format]:
        """The formats that can be written, by name."""
        return {form.name: form for form in self.formats if form.write is not None}

    @property
    def sources(self) -> tuple[Source, ...]:
        """In the order in which they are asked: Adaptrix's own, then plugins' by distribution."""
        return self._records("adaptrix_sources")

    @property
    def generators(self) -> tuple[Generator, ...]:
        """By name."""
        return tuple(sorted(self._records("adaptrix_generators"), key=record_name))

    @property
    def commands(self) -> tuple[Command, ...]:
        """Those of plugins, by name."""
        return tuple(sorted(self._records("adaptrix_commands"), key=record_name))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """A warning for every plugin that failed or is missing."""
        return tuple(plugin.problem for plugin in self.plugins if plugin.state in ("failed", "missing"))

    def _records(self, hook: str, *, own_last: bool = False) -> tuple[Any, ...]:
        own, *others = self.plugins
        ordered = (*others, own) if own_last else self.plugins
        return tuple(record for plugin in ordered for record in plugin.records.get(hook, ()))


@lru_cache(maxsize=2)
def _remembered(
    allow: frozenset[str] | None, strict: bool, entry_points: tuple[EntryPoint, ...], hooks: tuple[str, ...]
) -> Catalog:
    return Catalog(allow=allow, strict=strict, entry_points=entry_points, hooks=hooks)


def _may_load(plugin: Plugin, allowed: Collection[str] | None) -> bool:
    return allowed is None or not _names(plugin).isdisjoint(allowed)


def _order(plugin: Plugin) -> tuple[str, str]:
    return plugin.distribution, plugin.name


def _settled(own: Plugin, others: Iterable[Plugin]) -> Iterator[Plugin]:
    """The plugins, failed where they are not alone in claiming something; Adaptrix's own claims stand."""
    yield own
    taken = [*_claims(own), *(("command", name) for name in OWN_COMMANDS)]
    free = [_alone(plugin, {"adaptrix itself": taken}) for plugin in others]
    for plugin in free:
        yield _alone(plugin, {str(other): list(_claims(other)) for other in free if other is not plugin})


def _alone(plugin: Plugin, contenders: Mapping[str, Collection[Claim]]) -> Plugin:
    """The plugin, failed where it claims something that another does, or one thing twice."""
    mine = Counter(_claims(plugin))
    others = {claim: ["itself"] for claim, count in mine.items() if count > 1}
    for contender, claims in contenders.items():
        for claim in mine.keys() & claims:
            others.setdefault(claim, []).append(contender)
    said = (f"{kind} {name!r} is claimed by {plugin} and {' and '.join(by)}" for (kind, name), by in others.items())
    return replace(plugin, state="failed", error="; ".join(sorted(said)), records={}) if others else plugin


def _claims(plugin: Plugin) -> Iterator[Claim]:
    """Everything that a plugin claims for itself alone."""
    for hook, records in plugin.records.items():
        for record in records:
            yield hook.removeprefix("adaptrix_").removesuffix("s"), record_name(record)
            yield from (("model_type", kind) for kind in getattr(record, "model_types", ()))


def _missing(allowed: Mapping[str, str], found: Iterable[Plugin]) -> Iterator[Plugin]:
    """Plugins that ADAPTRIX_PLUGINS names and that are not installed: a misspelt name must not go unnoticed."""
    known = {"adaptrix"}.union(*map(_names, found))
    for name in sorted(allowed.keys() - known):
        yield Plugin(allowed[name], "", state="missing", error="ADAPTRIX_PLUGINS names it, and no plugin is called so")


def _names(plugin: Plugin) -> set[str]:
    return {_folded(plugin.name), _folded(plugin.distribution)}


def _folded(name: str) -> str:
    """A name as package indexes compare it: adaptrix_mamba is adaptrix-mamba."""
    return re.sub(r"[-_.]+", "-", name).lower()
