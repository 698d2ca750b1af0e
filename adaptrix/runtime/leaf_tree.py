"""The leaves of an adapter as the parameters of a module, and from a checkpoint back into them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

import torch
from torch import nn

from adaptrix.errors import Problem, RefusedError
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import gain_of


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


def places(root: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Each parameter with the module that holds it and its name there."""
    owners = list(root.modules())
    return [(owner, name, leaf) for owner in owners for name, leaf in owner.named_parameters(recurse=False)]


def _parameter_name(name: str) -> str:
    """The name of a leaf as peft has it: ``lora_A.weight``, as there may be a ``lora_B.bias`` as well."""
    return name if name.endswith(".bias") else f"{name}.weight"


def take(leaves: Mapping[str, nn.Parameter], found: Mapping[str, nn.Parameter], where: str) -> None:
    """Copies numbers into leaves. Raises :class:`RefusedError` unless names and shapes are the same."""
    own, theirs = _shapes(leaves), _shapes(found)
    names = [name for name in sorted({*own, *theirs}) if own.get(name) != theirs.get(name)]
    if names:
        raise RefusedError(_other(where, name, own.get(name, "none"), theirs.get(name, "none")) for name in names)
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(found[name])


def require_scales(plan: Plan, found: Plan, where: str) -> None:
    """Raises :class:`RefusedError` where deltas of two plans multiply the same numbers by another scale."""
    own, theirs = _scales(plan), _scales(found)
    names = [name for name in sorted({*own} & {*theirs}) if not isclose(own[name], theirs[name], rel_tol=1e-6)]
    if names:
        raise RefusedError(_other(where, name, f"scale {own[name]:g}", f"scale {theirs[name]:g}") for name in names)


def _other(where: str, name: str, own: str, theirs: str) -> Problem:
    remedy = "Resume from a checkpoint of this adapter, or load the other one: session.load(name, folder)."
    return Problem("model-changed", f"{where} {name}", f"the checkpoint has {theirs}", f"{own}, as in training", remedy)


def _shapes(leaves: Mapping[str, nn.Parameter]) -> dict[str, str]:
    return {name: f"one of shape {list(leaf.shape)}" for name, leaf in leaves.items()}


def _scales(plan: Plan) -> dict[str, float]:
    return {str(plan.bound.targets[site]): plan.delta(site).scale * gain_of(plan, site) for site in plan.sites}
