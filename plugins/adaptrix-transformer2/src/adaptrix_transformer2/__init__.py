"""Transformer² for Adaptrix: experts that are vectors of singular values, trained, imported and put to use.

What is heavy is imported when it is used: the command line imports this module to list its commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptrix import Command, hookimpl

if TYPE_CHECKING:
    import click

    from adaptrix_transformer2.decomposition import Decomposition as Decomposition
    from adaptrix_transformer2.decomposition import decomposed as decomposed
    from adaptrix_transformer2.decomposition import decomposed_base as decomposed_base
    from adaptrix_transformer2.experts import expert as expert
    from adaptrix_transformer2.experts import save as save
    from adaptrix_transformer2.experts import untrained as untrained
    from adaptrix_transformer2.experts import z_of_expert as z_of_expert
    from adaptrix_transformer2.guide import Transformer2Config as Transformer2Config
    from adaptrix_transformer2.guide import Transformer2Model as Transformer2Model
    from adaptrix_transformer2.guide import Transformer2Output as Transformer2Output
    from adaptrix_transformer2.guide import create_transformer2_model as create_transformer2_model
    from adaptrix_transformer2.published import read_published as read_published

_HOMES = {
    "Decomposition": "decomposition",
    "Transformer2Config": "guide",
    "Transformer2Model": "guide",
    "Transformer2Output": "guide",
    "create_transformer2_model": "guide",
    "decomposed": "decomposition",
    "decomposed_base": "decomposition",
    "expert": "experts",
    "read_published": "published",
    "save": "experts",
    "untrained": "experts",
    "z_of_expert": "experts",
}
__all__ = [
    "Decomposition",
    "Transformer2Config",
    "Transformer2Model",
    "Transformer2Output",
    "create_transformer2_model",
    "decomposed",
    "decomposed_base",
    "expert",
    "read_published",
    "save",
    "untrained",
    "z_of_expert",
]


@hookimpl
def adaptrix_commands() -> Iterator[Command]:
    """``adaptrix transformer2``."""
    yield Command("transformer2", "Train, import and evaluate experts of singular values.", _load_command)


def _load_command() -> click.Command:
    from adaptrix_transformer2.commands import command

    return command


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
