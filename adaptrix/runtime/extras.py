"""Tensors that are no deltas, on a live model: biases, trained heads, modules saved whole.

A new bias is a constant c = b' − b beside the deltas of its module; so a weighted sum of biases is the base's
plus the weighted differences from it. Whatever else is replaced runs as a twin of the module
(:mod:`adaptrix.runtime.replaced`). An extra of a layer acts where the plan has the layer; one outside the layers
always does, for without its head a trained classifier is none. Gains are for ΔW and leave extras alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from adaptrix.adapter import Extra
from adaptrix.architecture import Site
from adaptrix.binding.identify import kept_paths
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import offloaded, present
from adaptrix.runtime.kernel import Adding, Kernel
from adaptrix.runtime.kinds import kind_at
from adaptrix.runtime.modules import Reached, whole_site
from adaptrix.runtime.replaced import SiteKernel, twin
from adaptrix.torch_tensor import as_torch

#: what stands in the names under which peft saves a tensor of a module saved whole once more
_COPY = re.compile(r"\.(?:modules_to_save(?:\.[^.]+)?|original_module)(?=\.)")
_MERGE = "Merge the adapter into its base with peft, or attach one without it."


@dataclass(frozen=True, slots=True, eq=False)
class ExtraTarget:
    """A parameter of the model, and the tensor that an adapter puts in its place, both of one shape.

    ``constant``: it is a bias that the module adds last, so that the difference can be added after it.
    """

    reached: Reached
    leaf: str
    own: nn.Parameter
    tensor: Tensor
    constant: bool


def places(plan: Plan, model: nn.Module, modules: Mapping[Site, Reached]) -> tuple[list[ExtraTarget], list[Problem]]:
    """The targets of the extras that act, and a problem for each that no hook can serve.

    One that the model has already is in neither list: peft saves the embeddings of the base beside deltas on them.
    """
    found: list[ExtraTarget] = []
    problems: list[Problem] = []
    names = dict(model.named_modules(remove_duplicate=False)) if plan.bound.adapter.extras else {}
    for key, extra in plan.bound.adapter.extras.items():
        try:
            place = _place(key, extra, plan, names, modules)
            if place is not None:
                _require_own(place, key, plan, names)
                _require_servable(place, key, extra, plan)
                found.append(place)
        except RefusedError as error:
            problems += error.problems
    return found, problems


def with_extras(kernels: Mapping[Site, Adding], extras: Iterable[ExtraTarget]) -> dict[Site, SiteKernel]:
    """The kernels with every extra in its place."""
    changes: dict[Site, SiteKernel] = dict(kernels)
    whole: dict[Site, list[ExtraTarget]] = {}
    for place in extras:
        if place.constant:
            changes[place.reached.site] = _shifted(kernels.get(place.reached.site), place)
        else:
            whole.setdefault(place.reached.site, []).append(place)
    for site, group in whole.items():
        changes[site] = twin(group[0].reached.module, {place.leaf: place.tensor for place in group})
    return changes


def _place(
    key: str, extra: Extra, plan: Plan, names: Mapping[str, nn.Module], modules: Mapping[Site, Reached]
) -> ExtraTarget | None:
    """The target of an extra; None where it does not act, or the model has it already. Raises :class:`RefusedError`."""
    where = f"{plan.bound.adapter.name} {key}"
    if not extra.acts:
        return None
    if extra.kind == "token_delta":
        raise refuse(
            "extra-unsupported", where, "trained rows of an embedding, which attaching does not do", "deltas", _MERGE
        )
    if _is_echo(key, plan):
        return None
    path, _, leaf = key.rpartition(".")
    reached = _reach(path.removesuffix(".base_layer"), plan, names, modules)
    own = None if reached is None else reached.module._parameters.get(leaf)
    if reached is None or own is None:
        remedy = "Attach to a model of the class that it was trained on, such as one with the same head."
        raise refuse("module-missing", where, "the model has no such parameter", "one for every tensor saved", remedy)
    if not _acts(plan, reached):
        return None
    with present(reached.module):
        own = reached.module.get_parameter(leaf)  # in this block only where the module is offloaded
        _require_like(own, extra, where)
        tensor = as_torch(extra.tensor, own.device).to(own.dtype)
        if torch.equal(own.detach(), tensor):
            return None
    if offloaded(reached.module):
        remedy = "Attach to a model whose device_map offloads other modules."
        raise refuse(
            "weights-not-loaded", where, "it replaces a tensor of an offloaded module", "a module in memory", remedy
        )
    return ExtraTarget(
        reached, leaf, own, tensor, leaf == "bias" and extra.kind == "bias" and _adds_last(reached.module)
    )


def _is_echo(key: str, plan: Plan) -> bool:
    """True for a tensor that is there under its module's own name too: under ``bias="all"`` peft saves the biases of
    a module saved whole three times, those of the original too, and reads one."""
    plain = _COPY.sub("", key)
    return plain != key and plain in plan.bound.adapter.extras


def _reach(path: str, plan: Plan, names: Mapping[str, nn.Module], modules: Mapping[Site, Reached]) -> Reached | None:
    """The module of a path, under any prefix of the family; one without a role keeps its path as its site."""
    architecture = plan.bound.architecture
    site = architecture.locate(path)
    if site is not None and site in modules:
        return modules[site]
    pairs = product(architecture.prefixes, architecture.prefixes)
    spelled = (home + path.removeprefix(prefix) for home, prefix in pairs if path.startswith(prefix))
    name = next((name for name in (path, *spelled) if name in names), None)
    kept = None if name is None else kept_paths([name]).locate(name)
    return None if name is None or kept is None else Reached(name, kept, names[name])


def _acts(plan: Plan, reached: Reached) -> bool:
    """True where the plan has the layer of a module; outside the layers of the family every extra acts."""
    stack = _stack(plan, reached)
    return plan.policy == "all" or stack is None or reached.site.layer in plan.layers.get(stack, ())


def _stack(plan: Plan, reached: Reached) -> str | None:
    """The stack of layers that a module is in, by its role or by where the roles of the family lie."""
    roles = plan.bound.architecture.roles
    if reached.site.layer is None:
        return None
    if reached.site.role in roles:
        return roles[reached.site.role].depth
    start = reached.site.role.removeprefix("modules.").partition("{layer}")[0]
    stems = ((role.paths[0].partition("{layer}")[0], role.depth) for role in roles.values() if role.layered)
    return next((depth for stem, depth in stems if stem.endswith(start) or start.endswith(stem)), None)


def _require_like(own: nn.Parameter, extra: Extra, where: str) -> None:
    """Raises :class:`RefusedError` unless the model's parameter is loaded, of floats, and of the extra's shape."""
    if own.is_meta:
        raise refuse(
            "weights-not-loaded", where, "the module has no weights (meta device)", "a loaded model", "Load them first."
        )
    if tuple(own.shape) != extra.tensor.shape:
        remedy = "Where the vocabulary grew: model.resize_token_embeddings. Else it belongs to another model."
        raise refuse("shape", where, f"shape {list(extra.tensor.shape)}", f"{list(own.shape)}", remedy)
    if not own.is_floating_point() or own.itemsize == 1:
        raise refuse("quantised", where, "it replaces a quantised weight", "a weight in floats", _MERGE)


def _require_own(place: ExtraTarget, key: str, plan: Plan, names: Mapping[str, nn.Module]) -> None:
    """Raises :class:`RefusedError` for a parameter of several modules, unless it is known which of them is meant."""
    holders = [f"{n}.{leaf}" for n, m in names.items() for leaf, p in m._parameters.items() if p is place.own]
    adapter = plan.bound.adapter
    saved = adapter.provenance.config.get("modules_to_save") or ()
    named = any(f".{place.reached.name}".endswith(f".{name}") for name in saved)
    if len(holders) > 1 and not named and not all(holder in adapter.extras for holder in holders):
        found = f"it replaces one weight of {' and '.join(holders)}, and does not say of which"
        raise refuse("tied", f"{adapter.name} {key}", found, "modules_to_save that name the module", _MERGE)


def _require_servable(place: ExtraTarget, key: str, extra: Extra, plan: Plan) -> None:
    """Raises :class:`RefusedError` for a module that no twin can stand in for."""
    where = f"{plan.bound.adapter.name} {key}"
    if extra.kind == "base_weight":
        remedy = "Attach to the base that it was trained on, with the same changes to its vocabulary."
        raise refuse(
            "extra-unsupported", where, "the base's own weight, and the model has another", "the same base", remedy
        )
    beside = plan.delta(place.reached.site) if place.reached.site in plan.sites else None
    if place.constant and beside is not None and not kind_at(plan, place.reached.site, "attaching").takes_bias:
        found = f"a bias that is replaced beside a {beside.kind} delta"
        raise refuse("extra-unsupported", where, found, "one or the other", _MERGE)
    if place.constant:
        return
    if place.reached.site in map(whole_site, plan.sites):
        raise refuse(
            "extra-unsupported", where, "a module that is replaced and has a delta too", "one or the other", _MERGE
        )
    module = place.reached.module
    inputs = [p for p in inspect.signature(type(module).forward).parameters.values() if p.name != "self"]
    if len(inputs) != 1 or inputs[0].kind is not inputs[0].POSITIONAL_OR_KEYWORD or any(module.children()):
        found = f"it replaces a tensor of a {type(module).__name__}, which is no module of one input and one output"
        raise refuse("extra-unsupported", where, found, "a linear layer, an embedding or a norm", _MERGE)


def _adds_last(module: nn.Module) -> bool:
    """True for a module whose output is something plus its bias, along the last dimension."""
    return isinstance(module, (nn.Linear, nn.LayerNorm)) or type(module).__name__ == "Conv1D"


def _shifted(kernel: Adding | None, place: ExtraTarget) -> Kernel:
    """A kernel, or one of zeros, with the difference from the model's own bias."""
    own = place.own.detach().float()
    difference = place.tensor.float() - own
    if kernel is not None:
        assert isinstance(kernel, Kernel)  # beside one that takes no bias it was refused
        c = difference if kernel.c is None else kernel.c.float() + difference
        return replace(kernel, c=c.to(kernel.At.dtype))
    module = place.reached.module
    size = module.in_features if isinstance(module, nn.Linear) else len(module.get_parameter("weight"))
    At, Bt = place.own.detach().new_zeros(size, 1), place.own.detach().new_zeros(1, len(own))
    return Kernel(At, Bt, c=difference.to(place.own.dtype))
