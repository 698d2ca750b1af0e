"""Packages that Adaptrix does without until something needs them, each brought by an extra of its distribution."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from adaptrix.errors import Problem, UsageError


def require(module: str, extra: str, user: str) -> Any:
    """The optional module ``module``, imported.

    - ``extra``: the extra of Adaptrix that brings it, such as ``torch``.
    - ``user``: what needs it, for the message.

    Raises :class:`UsageError` with the command that installs it, or with the reason why it cannot be imported.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        found = f"{error.name or module} is not installed"
        raise UsageError(Problem("package-missing", user, found, remedy=f"Run: {install_command(extra)}")) from None
    except ImportError as error:  # it is there, and broken: a library that it loads is not
        found, remedy = f"{module} cannot be imported: {error}", f"Install it again: {install_command(extra)}"
        raise UsageError(Problem("package-missing", user, found, remedy=remedy)) from None


def install_command(extra: str) -> str:
    """The command that installs what an extra brings."""
    return f'pip install "adaptrix[{extra}]"'
