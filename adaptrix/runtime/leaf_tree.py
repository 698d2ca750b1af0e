"""The leaves of an adapter as the parameters of a module, and from a checkpoint back into them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from adaptrix.errors import Problem, RefusedError


def leaf_tree(leaves: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module for each part of the leaves' paths: a dot in the name of a parameter is not allowed."""
    root = nn.Module()
    for name, leaf in leaves.items():
        *path, last = _parameter_name(name).split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(last, leaf)
    return root


def _parameter_name(name: str) -> str:
    """The name of a leaf as peft has it: ``lora_A.weight``, as there may be a ``lora_B.bias`` as well."""
    return name if name.endswith(".bias") else f"{name}.weight"


def take(leaves: Mapping[str, nn.Parameter], found: Mapping[str, nn.Parameter], where: str) -> None:
    """Copies numbers into leaves. Raises :class:`RefusedError` unless names and shapes are the same."""
    remedy = "Resume from a checkpoint of this adapter, or load the other one: session.load(name, folder)."
    shapes = {name: (_shape(leaves, name), _shape(found, name)) for name in sorted({*leaves, *found})}
    problems = [
        Problem("model-changed", f"{where} {name}", f"the checkpoint has {theirs}", f"{own}, as in training", remedy)
        for name, (own, theirs) in shapes.items()
        if own != theirs
    ]
    if problems:
        raise RefusedError(problems)
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(found[name])


def _shape(leaves: Mapping[str, nn.Parameter], name: str) -> str:
    return f"one of shape {list(leaves[name].shape)}" if name in leaves else "none"
