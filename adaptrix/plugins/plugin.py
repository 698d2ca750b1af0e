"""One plugin: its import, its hooks and its records, of which nothing goes wrong but in itself."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from adaptrix import __version__
from adaptrix.architecture import Architecture
from adaptrix.architecture.dialect import Dialect
from adaptrix.errors import Problem
from adaptrix.plugins import hookspecs
from adaptrix.plugins.contribution import PluginError, answerable, guarded, record_name, require_valid
from adaptrix.records import Command, Format, Generator, Source

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from adaptrix.schemas.shared import PluginJSON

HOOKS: Mapping[str, type] = {
    "adaptrix_architectures": Architecture,
    "adaptrix_dialects": Dialect,
    "adaptrix_formats": Format,
    "adaptrix_sources": Source,
    "adaptrix_generators": Generator,
    "adaptrix_commands": Command,
}
State = Literal["loaded", "failed", "blocked", "missing"]


@dataclass(frozen=True)
class Plugin:
    """A plugin: its name, its distribution, and the state that loading left it in.

    ``blocked``: ADAPTRIX_PLUGINS does not name it; ``missing``: it names the plugin, which is not installed.
    ``records``: what it contributed, by hook; ``error``: why it failed; ``trace``: where.
    """

    name: str
    distribution: str
    version: str = ""
    state: State = "loaded"
    error: str = ""
    trace: str = field(default="", repr=False)
    records: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution})" if self.distribution else self.name

    @property
    def problem(self) -> Problem:
        """The error, as a warning: everything else works."""
        remedy = "" if self.state == "missing" else "Update or uninstall it, or leave it out of ADAPTRIX_PLUGINS."
        return Problem("plugin", f"plugin {self}", self.error, remedy=remedy, severity="warning")

    def blame(self, error: str) -> Problem:
        """The problem of a function of the plugin that failed, where the work cannot go on without it."""
        return replace(replace(self, error=error).problem, severity="error")

    def as_dict(self) -> PluginJSON:
        """Everything but the trace, with the names of the records."""
        contributed = {
            hook.removeprefix("adaptrix_"): list(map(record_name, found)) for hook, found in self.records.items()
        }
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "state": self.state,
            "error": self.error,
            "contributes": {hook: names for hook, names in contributed.items() if names},
        }


def own_plugin(hooks: Collection[str]) -> Plugin:
    """Adaptrix itself, through the same hooks; what is wrong with it is raised as it is."""
    plugin = Plugin("adaptrix", "adaptrix", __version__)
    if set(hooks) <= {"adaptrix_commands"}:  # its own are in a table of the command line
        return plugin
    from adaptrix.plugins import builtins

    try:
        return replace(plugin, records=_contributions(builtins, plugin, hooks))
    except PluginError as error:
        raise (error.__cause__ or error) from None


def named(entry: EntryPoint) -> Plugin:
    """The plugin of an entry point, not loaded. A distribution whose metadata is lost is called by its module."""
    name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
    return Plugin(entry.name, name or entry.value, version or "", "blocked")


def load(entry: EntryPoint, plugin: Plugin, hooks: Collection[str] = HOOKS.keys()) -> Plugin:
    """The plugin with all the records of ``hooks`` that its entry point leads to, or the error and
    no records. Later errors of its functions name it."""
    plugin = replace(plugin, state="loaded")
    try:
        found = _contributions(_imported(entry), plugin, hooks)
        credited = {hook: tuple(answerable(record, plugin.blame) for record in found[hook]) for hook in found}
        return replace(plugin, records=credited)
    except PluginError as error:
        trace = "".join(traceback.format_exception(error.__cause__ or error))
        return replace(plugin, state="failed", error=str(error), trace=trace)


def _imported(entry: EntryPoint) -> object:
    """The object that an entry point names; a failed import leaves none of the plugin's own modules behind."""
    before = frozenset(sys.modules)
    try:
        with guarded("import failed"):
            return entry.load()
    except PluginError:
        own = _package(entry.value.partition(":")[0].strip())
        for name in sys.modules.keys() - before:  # not its imports: other modules may hold those by now
            if f"{name}.".startswith(f"{own}."):
                del sys.modules[name]
        raise


def _package(module: str) -> str:
    """The outermost package of a module, less any namespace that it shares with other distributions."""
    steps = module.split(".")
    packages = (".".join(steps[:count]) for count in range(1, len(steps)))
    return next((name for name in packages if not _is_namespace(name)), module)


def _is_namespace(package: str) -> bool:
    return package in sys.modules and getattr(sys.modules[package], "__file__", None) is None


def _contributions(module: object, plugin: Plugin, hooks: Collection[str]) -> dict[str, tuple[Any, ...]]:
    """The records of each of the hooks that a plugin implements. Raises :class:`PluginError`.

    Each plugin has a manager to itself, so there is nothing to undo where it fails.
    """
    manager = pluggy.PluginManager("adaptrix")
    manager.add_hookspecs(hookspecs)
    with guarded("its hooks"):
        manager.register(module, plugin.name)
        manager.check_pending()
    if not manager.get_hookcallers(module):
        raise PluginError("it implements no hook: mark its functions with adaptrix.hookimpl")
    implemented = {hook: getattr(manager.hook, hook).get_hookimpls() for hook in hooks}
    return {
        hook: tuple(_credited(record, plugin) for each in found for record in _yielded(hook, each.function))
        for hook, found in implemented.items()
    }


def _yielded(hook: str, function: Callable[[], Any]) -> tuple[Any, ...]:
    """The records of one implementation; called without pluggy, which takes a None for no answer."""
    with guarded(hook):
        found = function()
        if found is None:
            raise TypeError("it returned None; an implementation yields its records")
        records = tuple(found)
        for record in records:
            require_valid(record, HOOKS[hook])
        return records


def _credited(record: Any, plugin: Plugin) -> Any:
    """The record with where it is from."""
    return replace(record, origin=plugin.distribution) if isinstance(record, Architecture) else record
