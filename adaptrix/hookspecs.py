"""The hooks a plugin can implement. All of them collect: each yields records, none replaces another's.

Put a function of one of these names in a module, mark it with :data:`hookimpl`, and name the module in
the entry-point group ``adaptrix`` of your distribution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from adaptrix.architecture import Architecture
    from adaptrix.records import Command, Format, Generator, Source

hookspec = pluggy.HookspecMarker("adaptrix")
hookimpl = pluggy.HookimplMarker("adaptrix")


@hookspec
def adaptrix_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]  # a specification has no body
    """Architecture families, as ``adaptrix.registry.read_architecture`` reads them from TOML."""


@hookspec
def adaptrix_formats() -> Iterable[Format]:  # type: ignore[empty-body]  # a specification has no body
    """Ways in which adapters are written to files."""


@hookspec
def adaptrix_sources() -> Iterable[Source]:  # type: ignore[empty-body]  # a specification has no body
    """Places that adapters come from."""


@hookspec
def adaptrix_generators() -> Iterable[Generator]:  # type: ignore[empty-body]  # a specification has no body
    """Ways to come by an adapter other than reading one."""


@hookspec
def adaptrix_commands() -> Iterable[Command]:  # type: ignore[empty-body]  # a specification has no body
    """Subcommands of ``adaptrix``."""
