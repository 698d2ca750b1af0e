"""Transformer² for Adaptrix: experts that are vectors of singular values, trained, imported and put to use.

The public names are in ``__init__.pyi``. What is heavy is imported when it is used: the command line imports this
module to list its commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from adaptrix import Command, hookimpl
from adaptrix.extend import lazy_names

if TYPE_CHECKING:
    import click


__getattr__, __dir__, __all__ = lazy_names(__name__)


@hookimpl
def adaptrix_commands() -> Iterator[Command]:
    """``adaptrix transformer2``."""
    yield Command("transformer2", "Train, import and evaluate experts of singular values.", _load_command)


def _load_command() -> click.Command:
    from adaptrix_transformer2.commands import command

    return command
