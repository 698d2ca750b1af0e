"""The base of commands that read its weights: ``merge SRC BASE`` and ``merge SRC --base BASE`` are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from adaptrix.destination import same

F = TypeVar("F", bound=Callable[..., Any])


def base_argument(said: str = "The whole base: a folder or OWNER/NAME, weights and all.") -> Callable[[F], F]:
    """Adds ``BASE`` and ``--base``, which the command takes as ``positional`` and ``base`` and hands to
    :func:`one_base`. ``said``: the help of the option."""

    def added(function: F) -> F:
        function = click.option("--base", type=click.Path(), metavar="MODEL", help=f"{said} The same as BASE.")(
            function
        )
        return click.argument("positional", metavar="[BASE]", required=False, type=click.Path())(function)

    return added


def one_base(positional: str | None, base: str | None) -> str:
    """The base that a command line names. Raises ``click.UsageError`` for none, and for two."""
    context = click.get_current_context()
    if positional is not None and base is not None and not _alike(positional, base):
        raise click.UsageError(f"Two bases: {positional!r}, and --base {base!r}. Name one of them.", context)
    found = base if positional is None else positional
    if found is None:
        raise click.UsageError("Missing option '--base', or the argument BASE.", context)
    return found


def _alike(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/") or same(Path(one), Path(other))
