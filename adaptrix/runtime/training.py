"""Adapters in training: from their numbers to leaves of autograd, and back.

The leaves are A ``[r, in]``, B ``[out, r]``, ``lora_bias`` and magnitude ``[out]`` as peft has them, the scale
left out, in fp32 over a base of half precision: an optimiser takes the same steps here as there. That of a spectral
delta is z ``[k]``. Extras (trained heads, biases) have no leaves, so adapters with such are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from adaptrix.adapter import Adapter
from adaptrix.architecture import Site
from adaptrix.delta import Delta, LowRank, Spectral
from adaptrix.errors import Problem, RefusedError, UsageError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.build import by_module, home
from adaptrix.runtime.factors import Factors, factors, gain_of, is_embedding
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.spectral import Adding, SpectralKernel
from adaptrix.runtime.trainable import Trainable, TrainableKernel, TrainableSpectral
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import as_torch


@torch.inference_mode(False)
def learned(plan: Plan, modules: Mapping[Site, Reached], loaded: Mapping[Site, object]) -> dict[Site, Trainable]:
    """What a plan does, by the site of the whole weight, with leaves for its numbers; they are those ``loaded``.

    Raises :class:`RefusedError` for extras, and where the files of the adapter say something else than when it was
    loaded; :class:`UsageError` for a dropout that is no share.
    """
    _require_deltas_only(plan)
    dropout = _dropout(plan)
    found = {
        whole: _learned(plan, sites, modules[whole], dropout, loaded[whole]) for whole, sites in by_module(plan).items()
    }
    changed = [site for site, one in found.items() if not _agree(one.kernel, loaded[site])]
    if changed:
        where = f"{plan.bound.adapter.name} {changed[0]}"
        remedy = "session.load(name, uri) loads them as they are now."
        raise refuse("file-changed", where, "its files have changed since it was loaded", "the same files", remedy)
    return found


def adapter_now(plan: Plan, changes: Mapping[Site, object]) -> Adapter:
    """The adapter of a plan with the numbers that its leaves have now; what has no leaves is as it was."""
    adapter, targets = plan.bound.adapter, plan.bound.targets
    parts = {
        site: part for change in changes.values() if isinstance(change, Trainable) for site, part in _parts(change)
    }
    now = {site: _stored(plan.delta(site), part) for site, part in parts.items()}
    own = {targets[site]: delta for site, delta in now.items() if site not in plan.overrides}
    adapter = replace(adapter, deltas=MappingProxyType({**adapter.deltas, **own}))
    if adapter.recorded is None:
        return adapter
    planned = {str(site): delta for site, delta in now.items() if site in plan.overrides}
    overrides = MappingProxyType({**adapter.recorded.overrides, **planned})
    return replace(adapter, recorded=replace(adapter.recorded, overrides=overrides))


def _learned(plan: Plan, sites: list[Site], reached: Reached, dropout: float, loaded: object) -> Trainable:
    device, own = home(reached.module)
    dtype = torch.float64 if own is torch.float64 else torch.float32
    delta = plan.delta(sites[0])
    if isinstance(delta, Spectral) and isinstance(loaded, SpectralKernel):
        z, s = (as_torch(tensor, device, dtype) for tensor in (delta.z, delta.S))
        return TrainableSpectral(sites[0], loaded.axes, nn.Parameter(z), s, gain_of(plan, sites[0]))
    parts = {site: _leaves(factors(plan, site, device, dtype)) for site in sites}
    return TrainableKernel(parts, reached, dtype, dropout, is_embedding(delta))


@torch.no_grad()
def _agree(kernel: Adding, loaded: object) -> bool:
    """Whether a kernel has the numbers of the one loaded, as far as its dtype goes; DoRA's g is the base's too."""
    if isinstance(kernel, SpectralKernel):
        return isinstance(loaded, SpectralKernel) and torch.allclose(kernel.d.to(loaded.d), loaded.d, rtol=1e-2)
    if not isinstance(loaded, Kernel):
        return False
    pairs = [(kernel.At, loaded.At)] + ([(kernel.Bt, loaded.Bt)] if kernel.g is None else [])
    return all(one.shape == other.shape and torch.allclose(one.to(other), other, rtol=1e-3) for one, other in pairs)


def _leaves(part: Factors) -> Factors:
    bias = None if part.bias is None else nn.Parameter(part.bias)
    magnitude = None if part.magnitude is None else nn.Parameter(part.magnitude)
    return replace(part, A=nn.Parameter(part.A), B=nn.Parameter(part.B), bias=bias, magnitude=magnitude)


def _parts(change: Trainable) -> Iterable[tuple[Site, Factors | nn.Parameter]]:
    """The leaves of a module by site: factors, or z."""
    return [(change.site, change.z)] if isinstance(change, TrainableSpectral) else change.parts.items()


def _stored(delta: Delta, part: Factors | nn.Parameter) -> Delta:
    """A delta with the numbers of its leaves."""
    if isinstance(delta, Spectral) and isinstance(part, nn.Parameter):
        return replace(delta, z=_array(part))
    assert isinstance(delta, LowRank) and isinstance(part, Factors)  # noqa: PT018  # they were made of one another
    return replace(
        delta,
        A=_array(part.A),
        B=_array(part.B),
        bias=None if part.bias is None else _array(part.bias),
        magnitude=None if part.magnitude is None else _array(part.magnitude),
    )


def _array(leaf: Tensor) -> Stored:
    return Stored.of(leaf.detach().cpu().numpy())


def _dropout(plan: Plan) -> float:
    adapter = plan.bound.adapter
    found = adapter.provenance.config.get("lora_dropout") or 0.0
    if not isinstance(found, (int, float)) or not 0 <= found <= 1:
        raise UsageError(Problem("dropout", adapter.name, f"its lora_dropout is {found!r}", "a share from 0 to 1"))
    return float(found)


def _require_deltas_only(plan: Plan) -> None:
    adapter = plan.bound.adapter
    remedy = "Train it with peft, or attach one without it."
    problems = [
        Problem("extra", f"{adapter.name} {key}", "it is no delta, and only deltas are trained here", "deltas", remedy)
        for key, extra in adapter.extras.items()
        if extra.kind != "base_weight"
    ]
    if problems:
        raise RefusedError(problems)
