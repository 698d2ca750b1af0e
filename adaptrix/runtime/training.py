"""Adapters in training: from their numbers to leaves of autograd, and back.

The leaves are A ``[r, in]``, B ``[out, r]``, ``lora_bias`` and magnitude ``[out]`` as peft has them, the scale
left out, in fp32 over a base of half precision: an optimiser takes the same steps here as there. That of a spectral
delta is z ``[k]``. Extras (trained heads, biases) have no leaves, so adapters with such are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import nn

from adaptrix.adapter import Adapter
from adaptrix.architecture import Site
from adaptrix.delta import Delta
from adaptrix.errors import Problem, RefusedError, UsageError
from adaptrix.planning.plan import Plan
from adaptrix.runtime.build import by_module
from adaptrix.runtime.kinds import kind_at
from adaptrix.runtime.leaves import file_changed
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.parameter_kernel import ParameterKernel
from adaptrix.runtime.trainable import Leaves, Trainable

_LEAVES = "deltas on linear layers and embeddings, which alone are trained here"


@torch.inference_mode(False)
def learned(plan: Plan, modules: Mapping[Site, Reached], loaded: Mapping[Site, object]) -> dict[Site, Trainable]:
    """The kernels of a plan in training, by the site of the whole weight; their numbers are those ``loaded``.

    Raises :class:`RefusedError` for extras, and where the files of the adapter have other numbers than when it was
    loaded; :class:`UsageError` for a dropout that is no share.
    """
    _require_deltas_only(plan)
    _require_outside(plan, loaded)
    dropout = _dropout(plan)
    found = {}
    for whole, sites in by_module(plan, modules).items():
        kind = kind_at(plan, sites[0], "training")
        found[whole] = Trainable(kind.learn(plan, sites, modules[whole], dropout, loaded[whole]))
    with torch.no_grad():
        changed = [site for site, one in found.items() if not one.leaves.kernel.agrees(loaded[site])]
    if changed:
        raise file_changed(plan, changed[0])
    return found


def adapter_now(plan: Plan, changes: Mapping[Site, object]) -> Adapter:
    """The adapter of a plan with the numbers that its leaves have now; what has no leaves is as it was."""
    adapter, targets, now = plan.bound.adapter, plan.bound.targets, _now(plan, changes)
    own = {targets[site]: delta for site, delta in now.items() if site not in plan.overrides}
    adapter = replace(adapter, deltas=MappingProxyType({**adapter.deltas, **own}))
    if adapter.recorded is None:
        return adapter
    planned = {str(site): delta for site, delta in now.items() if site in plan.overrides}
    overrides = MappingProxyType({**adapter.recorded.overrides, **planned})
    return replace(adapter, recorded=replace(adapter.recorded, overrides=overrides))


def plan_now(plan: Plan, changes: Mapping[Site, object]) -> Plan:
    """The plan with the numbers that its leaves have now."""
    now = _now(plan, changes)
    own = {site: delta for site, delta in now.items() if site not in plan.overrides}
    planned = {site: delta for site, delta in now.items() if site in plan.overrides}
    deltas = MappingProxyType({**plan.bound.deltas, **own})
    bound = replace(plan.bound, adapter=adapter_now(plan, changes), deltas=deltas)
    return replace(plan, bound=bound, overrides=MappingProxyType({**plan.overrides, **planned}))


def named_leaves(plan: Plan, changes: Mapping[Site, object]) -> dict[str, nn.Parameter]:
    """The leaves by the path of their module in the checkpoint and their name in an injection file."""
    targets, trained = plan.bound.targets, _trained(changes)
    return {f"{targets[site]}.{key}": leaf for leaves in trained for site, key, leaf in leaves.named()}


def _trained(changes: Mapping[Site, object]) -> Iterator[Leaves]:
    return (change.leaves for change in changes.values() if isinstance(change, Trainable))


def _now(plan: Plan, changes: Mapping[Site, object]) -> dict[Site, Delta]:
    """The deltas that have leaves, with the numbers of now."""
    return {site: delta for leaves in _trained(changes) for site, delta in leaves.stored(plan).items()}


def _require_outside(plan: Plan, loaded: Mapping[Site, object]) -> None:
    """Raises :class:`RefusedError` for changes of parameters that modules read themselves: these have no leaves."""
    inside = [site for site, kernel in loaded.items() if isinstance(kernel, ParameterKernel)]
    if inside:
        remedy = "Train it with peft, or attach it with layers=… that leave them out."
        raise RefusedError(
            Problem("kind-unsupported", f"{plan.bound.adapter.name} {site}", ParameterKernel.described, _LEAVES, remedy)
            for site in inside
        )


def _dropout(plan: Plan) -> float:
    adapter = plan.bound.adapter
    found = adapter.provenance.config.get("lora_dropout") or 0.0
    if not isinstance(found, (int, float)) or not 0 <= found <= 1:
        raise UsageError(Problem("config-value", adapter.name, f"its lora_dropout is {found!r}", "a share from 0 to 1"))
    return float(found)


def _require_deltas_only(plan: Plan) -> None:
    adapter = plan.bound.adapter
    remedy = "Train it with peft, or attach one without it."
    problems = [
        Problem(
            "extra-unsupported",
            f"{adapter.name} {key}",
            "it is no delta, and only deltas are trained here",
            "deltas",
            remedy,
        )
        for key, extra in adapter.extras.items()
        if extra.acts and extra.kind != "base_weight"
    ]
    if problems:
        raise RefusedError(problems)
