"""Text-to-LoRA for Adaptrix: a sentence becomes an adapter, and takes the ordinary road from there.

What is heavy is imported when it is used: the command line imports this module to list its commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptrix import Command, Generator, hookimpl

if TYPE_CHECKING:
    import click

    from adaptrix import Adapter
    from adaptrix_text_to_lora.encoders import Encoder as Encoder
    from adaptrix_text_to_lora.encoders import HashedNgrams as HashedNgrams
    from adaptrix_text_to_lora.generator import TextToLoRA as TextToLoRA
    from adaptrix_text_to_lora.guide import SakanaAIIntegration as SakanaAIIntegration
    from adaptrix_text_to_lora.guide import TextToLoRAConfig as TextToLoRAConfig
    from adaptrix_text_to_lora.hypernetwork import Hypernetwork as Hypernetwork
    from adaptrix_text_to_lora.shape import Shape as Shape
    from adaptrix_text_to_lora.skills import SkillDetector as SkillDetector
    from adaptrix_text_to_lora.states import ModelStates as ModelStates
    from adaptrix_text_to_lora.targets import shape_for as shape_for

_HOMES = {
    "Encoder": "encoders",
    "HashedNgrams": "encoders",
    "Hypernetwork": "hypernetwork",
    "ModelStates": "states",
    "SakanaAIIntegration": "guide",
    "Shape": "shape",
    "SkillDetector": "skills",
    "TextToLoRA": "generator",
    "TextToLoRAConfig": "guide",
    "shape_for": "targets",
}
__all__ = [
    "Encoder",
    "HashedNgrams",
    "Hypernetwork",
    "ModelStates",
    "SakanaAIIntegration",
    "Shape",
    "SkillDetector",
    "TextToLoRA",
    "TextToLoRAConfig",
    "shape_for",
]


@hookimpl
def adaptrix_generators() -> Iterator[Generator]:
    """An adapter from a sentence and a trained hypernetwork."""
    yield Generator("text-to-lora", "An adapter from a sentence, by a trained hypernetwork.", _generate)


@hookimpl
def adaptrix_commands() -> Iterator[Command]:
    """``adaptrix generate`` and ``adaptrix text-to-lora``."""
    yield Command("generate", "Make adapters out of sentences, with a trained hypernetwork.", _load_command)
    yield Command("text-to-lora", "Train and judge such hypernetworks, or take one over.", _load_group)


def _generate(prompt: str, /, **options: Any) -> Adapter:
    from adaptrix_text_to_lora.generator import TextToLoRA

    return TextToLoRA(**options).generate(prompt)


def _load_command() -> click.Command:
    from adaptrix_text_to_lora.command import command

    return command


def _load_group() -> click.Command:
    from adaptrix_text_to_lora.group import command

    return command


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
