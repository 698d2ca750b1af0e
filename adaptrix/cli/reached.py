"""The command that a run has come to, for what is said where the run ends early."""

from __future__ import annotations

from dataclasses import dataclass

import click


@dataclass(slots=True)
class Reached:
    """Filled in by the command itself; None before one is known."""

    command: str | None = None


def command_name(context: click.Context) -> str | None:
    """The words of a command: ``architectures show``; None for ``adaptrix`` itself."""
    return context.command_path.partition(" ")[2] or None
