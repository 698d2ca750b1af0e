"""What this installation knows: every record that Adaptrix and its plugins contribute.

A :class:`Catalog` is a value made on first need, not a global that imports fill. Each plugin is loaded
on its own and whole or not at all: one that fails, collides or misspells a hook is left out and
remembered with its error, and the rest works.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from adaptrix import hookspecs, installed
from adaptrix.architecture import Architecture
from adaptrix.errors import Problem, RefusedError
from adaptrix.records import Command, Format, Generator, Source

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_HOOKS: Mapping[str, type] = {
    "adaptrix_architectures": Architecture,
    "adaptrix_formats": Format,
    "adaptrix_sources": Source,
    "adaptrix_generators": Generator,
    "adaptrix_commands": Command,
}

State = Literal["loaded", "failed", "blocked"]


@dataclass(frozen=True)
class Plugin:
    """One plugin: what it is called, which distribution it is from, and what became of it.

    ``records``: what it contributed, by hook; ``error``: why it failed.
    """

    name: str
    distribution: str
    state: State = "loaded"
    error: str = ""
    records: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        contributed = {hook.removeprefix("adaptrix_"): [_name(r) for r in found] for hook, found in self.records.items()}
        return {
            "name": self.name,
            "distribution": self.distribution,
            "state": self.state,
            "error": self.error,
            "contributes": {hook: names for hook, names in contributed.items() if names},
        }


class Catalog:
    """The records of all plugins, validated, each name claimed once.

    ``allow``: the entry points that may load, all where None. ``strict``: a plugin that fails is a
    :class:`RefusedError` instead of an entry in :attr:`plugins`.
    """

    def __init__(self, *, allow: Iterable[str] | None = None, strict: bool = False, entry_points: Iterable[EntryPoint] = ()) -> None:
        self._manager = pluggy.PluginManager("adaptrix")
        self._manager.add_hookspecs(hookspecs)
        from adaptrix import builtins

        allowed = None if allow is None else set(allow)
        loaded = [self._register("adaptrix", "adaptrix", builtins)]
        ordered = sorted(entry_points, key=lambda e: (_distribution(e), e.name))
        loaded += [self._load(entry, allowed) for entry in ordered]
        self.plugins = tuple(_without_collisions(loaded))
        if strict and (failed := [plugin for plugin in self.plugins if plugin.state == "failed"]):
            raise RefusedError(_failure(plugin) for plugin in failed)

    @classmethod
    def from_environment(cls) -> Catalog:
        """All installed plugins, or those that ``ADAPTRIX_PLUGINS`` names; ``ADAPTRIX_STRICT=1`` is strict."""
        named = os.environ.get("ADAPTRIX_PLUGINS")
        allow = None if named is None else [name.strip() for name in named.split(",") if name.strip()]
        strict = os.environ.get("ADAPTRIX_STRICT", "") not in ("", "0")
        return cls(allow=allow, strict=strict, entry_points=installed.entry_points())

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        return self._records("adaptrix_architectures")

    @property
    def formats(self) -> tuple[Format, ...]:
        return self._records("adaptrix_formats")

    @property
    def sources(self) -> tuple[Source, ...]:
        return self._records("adaptrix_sources")

    @property
    def generators(self) -> tuple[Generator, ...]:
        return self._records("adaptrix_generators")

    @property
    def commands(self) -> tuple[Command, ...]:
        return self._records("adaptrix_commands")

    @property
    def problems(self) -> tuple[Problem, ...]:
        """A warning for every plugin that failed."""
        return tuple(replace(_failure(p), severity="warning") for p in self.plugins if p.state == "failed")

    def _records(self, hook: str) -> tuple[Any, ...]:
        return tuple(record for plugin in self.plugins if plugin.state == "loaded" for record in plugin.records.get(hook, ()))

    def _load(self, entry: EntryPoint, allowed: set[str] | None) -> Plugin:
        distribution = _distribution(entry)
        if allowed is not None and not {entry.name, distribution} & allowed:
            return Plugin(entry.name, distribution, "blocked")
        before = set(sys.modules)
        try:
            module = entry.load()
        except Exception as error:  # whatever a stranger's module raises on import must not stop the rest
            for name in sys.modules.keys() - before:
                del sys.modules[name]
            return Plugin(entry.name, distribution, "failed", f"import failed: {type(error).__name__}: {error}")
        return self._register(entry.name, distribution, module)

    def _register(self, name: str, distribution: str, module: object) -> Plugin:
        """Registers a plugin and calls its hooks; on any failure it is as if it had never been there."""
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
            return Plugin(name, distribution, records={hook: self._call(hook, module) for hook in _HOOKS})
        except Exception as error:  # a hook is a stranger's code too
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            return Plugin(name, distribution, "failed", f"{type(error).__name__}: {error}")

    def _call(self, hook: str, module: object) -> tuple[Any, ...]:
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        records = tuple(record for found in caller() for record in found)
        for record in records:
            if not isinstance(record, _HOOKS[hook]):
                raise TypeError(f"{hook} yielded {record!r}, not a record of type {_HOOKS[hook].__name__}")
        return records


def _without_collisions(plugins: list[Plugin]) -> Iterator[Plugin]:
    """The plugins, failed where one claims what another claims; Adaptrix's own claims stand."""
    owners: dict[tuple[str, str], list[Plugin]] = {}
    for plugin in plugins:
        for claim in _claims(plugin):
            owners.setdefault(claim, []).append(plugin)
    for plugin in plugins:
        clashes = sorted({(*claim, other.distribution) for claim in _claims(plugin) for other in owners[claim] if other is not plugin})
        if clashes and plugin is not plugins[0]:
            said = "; ".join(f"{kind} {name!r} is claimed by {plugin.distribution} and {other}" for kind, name, other in clashes)
            yield replace(plugin, state="failed", error=said, records={})
        else:
            yield plugin


def _claims(plugin: Plugin) -> list[tuple[str, str]]:
    """Everything that a plugin claims for itself alone: kind and name."""
    claims = []
    for hook, records in plugin.records.items():
        kind = hook.removeprefix("adaptrix_").removesuffix("s")
        for record in records:
            claims.append((kind, _name(record)))
            claims += [("model_type", kind) for kind in getattr(record, "model_types", ())]
    return claims


def _name(record: Any) -> str:
    return str(record.family if isinstance(record, Architecture) else record.name)


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _failure(plugin: Plugin) -> Problem:
    return Problem("plugin", f"plugin {plugin.name} ({plugin.distribution})", plugin.error,
                   remedy="`adaptrix plugins` shows it; uninstall it, or leave it out of ADAPTRIX_PLUGINS.")  # fmt: skip
