"""Text-to-LoRA for Adaptrix: a sentence becomes an adapter, and takes the ordinary road from there.

The public names are in ``__init__.pyi``. What is heavy is imported when it is used: the command line imports this
module to list its commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adaptrix import Command, Generator, hookimpl
from adaptrix.extend import lazy_names

if TYPE_CHECKING:
    import click

    from adaptrix import Adapter

__getattr__, __dir__, __all__ = lazy_names(__name__)


@hookimpl
def adaptrix_generators() -> Iterator[Generator]:
    """An adapter from a sentence and a trained hypernetwork."""
    yield Generator("text-to-lora", "An adapter from a sentence, by a trained hypernetwork.", _generate)


@hookimpl
def adaptrix_commands() -> Iterator[Command]:
    """``adaptrix generate`` and ``adaptrix text-to-lora``."""
    yield Command("generate", "Make adapters out of sentences, with a trained hypernetwork.", _load_command)
    yield Command("text-to-lora", "Train, evaluate and import such hypernetworks.", _load_group)


def _generate(prompt: str, /, **options: Any) -> Adapter:
    from adaptrix_text_to_lora.generator import TextToLoRA

    return TextToLoRA(**options).generate(prompt)


def _load_command() -> click.Command:
    from adaptrix_text_to_lora.command import command

    return command


def _load_group() -> click.Command:
    from adaptrix_text_to_lora.group import command

    return command
