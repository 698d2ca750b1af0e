"""The hooks a plugin can implement. All of them collect: each yields records, none replaces another's.

    # adaptrix_mine.py
    from pathlib import Path
    from adaptrix import hookimpl
    from adaptrix.extend import read_architecture

    @hookimpl
    def adaptrix_architectures():
        yield read_architecture(Path(__file__).with_name("mine.toml"))

    # pyproject.toml
    [project.entry-points.adaptrix]
    mine = "adaptrix_mine"

``adaptrix plugins`` shows what became of it. ``plugins/`` in Adaptrix's repository has whole examples.

A package may have a ``problems.toml``, in the form of Adaptrix's own: ``adaptrix explain`` reads it for the codes of
the plugin's problems.

A record with a field that is not what its type says fails the plugin. What a record's function raises is
told in the plugin's name; an :class:`~adaptrix.errors.AdaptrixError` is told as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from adaptrix.architecture import Architecture
    from adaptrix.architecture.dialect import Dialect
    from adaptrix.records import Command, Format, Generator, Source

hookspec = pluggy.HookspecMarker("adaptrix")
hookimpl = pluggy.HookimplMarker("adaptrix")


@hookspec
def adaptrix_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]  # a specification has no body
    """Architecture families, as ``adaptrix.extend.read_architecture`` reads them from TOML.

    No other plugin may claim the same family or ``model_type``. ``origin`` becomes the distribution.
    """


@hookspec
def adaptrix_dialects() -> Iterable[Dialect]:  # type: ignore[empty-body]  # a specification has no body
    """The names that a format has for the modules of a family, as ``adaptrix.extend.read_dialects`` reads them.

    No other plugin may describe the same family in the same format. A format whose ``read`` returns an adapter with a
    ``dialect``, or whose ``write`` asks for one, is a reader, a writer and these tables.
    """


@hookspec
def adaptrix_formats() -> Iterable[Format]:  # type: ignore[empty-body]  # a specification has no body
    """Ways in which adapters are written to files.

    They are asked before Adaptrix's own, so that ``detect`` can take a checkpoint that the ``peft`` format
    would refuse; it must take no other. The files of formats that share one are fetched together.
    """


@hookspec
def adaptrix_sources() -> Iterable[Source]:  # type: ignore[empty-body]  # a specification has no body
    """Places that adapters come from; asked after Adaptrix's own, the disk and the Hub."""


@hookspec
def adaptrix_generators() -> Iterable[Generator]:  # type: ignore[empty-body]  # a specification has no body
    """Ways to come by an adapter other than reading one."""


@hookspec
def adaptrix_commands() -> Iterable[Command]:  # type: ignore[empty-body]  # a specification has no body
    """Subcommands of ``adaptrix``, each imported by its ``load`` when it is called for.

    To list them, ``adaptrix --help`` imports every plugin's module and calls this hook alone: import what is
    heavy where it is used.
    """
