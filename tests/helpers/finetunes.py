"""Bases and their full fine-tunes, saved by transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.helpers.families import tiny_model
from tests.helpers.peft_models import linear_names


@dataclass
class Tuned:
    """A base and its fine-tune, in memory and on the disk."""

    base: Path
    folder: Path
    build: Any
    model: Any


def tuned(folder, family="llama", change=None, dtype=torch.float32, **saving):
    """A tiny model and what ``change`` makes of it, both saved by transformers."""

    def build():
        return tiny_model(family).to(dtype)

    build().save_pretrained(folder / "base")
    model = build()
    with torch.no_grad():
        (change or everything_linear)(model)
    model.save_pretrained(folder / "tuned", **saving)
    return Tuned(folder / "base", folder / "tuned", build, model.eval())


def noise(tensor, seed, size=0.02):
    return size * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).to(tensor.dtype)


def everything_linear(model):
    """Every weight of a linear layer in the stack gets a change of full rank."""
    names = linear_names(model)
    for seed, (path, module) in enumerate(model.named_modules()):
        if path.rpartition(".")[2] in names and any(step.isdecimal() for step in path.split(".")):
            module.weight += noise(module.weight, seed)
