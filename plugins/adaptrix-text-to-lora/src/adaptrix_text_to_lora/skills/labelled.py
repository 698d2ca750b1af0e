"""The labelled prompts: what the classifier is trained, calibrated and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

Split = Literal["train", "calibration", "test"]

FILE = files("adaptrix_text_to_lora.skills") / "prompts.tsv"


@dataclass(frozen=True)
class Prompt:
    """A prompt and its skills, none, one or several. Prompts of one ``template`` are all in one split."""

    text: str
    skills: frozenset[str]
    template: int
    split: Split


@cache
def labelled() -> tuple[Prompt, ...]:
    """Every labelled prompt, in the file's order."""
    lines = FILE.read_text("utf-8").splitlines()
    return tuple(_prompt(*line.split("\t")) for line in lines if not line.startswith("#"))


def of_split(split: Split) -> tuple[Prompt, ...]:
    """The prompts of one split."""
    return tuple(prompt for prompt in labelled() if prompt.split == split)


def _prompt(split: str, template: str, skills: str, text: str) -> Prompt:
    known = next(name for name in get_args(Split) if name == split)
    return Prompt(text, frozenset(skills.split()), int(template), known)
