"""From a plan to kernels: one kernel for each module of the model that the plan changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adaptrix.architecture import Role, Site
from adaptrix.architecture.layout import role_rows
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.reach import Reached, whole_site
from adaptrix.runtime.replaced import Change, numbers
from adaptrix.runtime.tensors import as_torch


def kernels(plan: Plan, modules: Mapping[Site, Reached], dtype: torch.dtype | None = None) -> dict[Site, Kernel]:
    """The kernels of a plan by the site of the whole weight, on each module's own device.

    ``dtype``: that of the arithmetic, by default that of the module's weight (fp32 for a quantised one).
    Raises :class:`RefusedError` for what cannot be computed; the numbers are left to :func:`require_finite`.
    """
    groups: dict[Site, list[Site]] = {}
    for site in plan.sites:
        groups.setdefault(whole_site(site), []).append(site)
    return {whole: _kernel(plan, sites, modules[whole], dtype) for whole, sites in groups.items()}


def _kernel(plan: Plan, sites: list[Site], reached: Reached, dtype: torch.dtype | None) -> Kernel:
    """The deltas on one module, side by side where they are those of its parts."""
    device, own = _home(reached.module)
    wanted = dtype or own
    role = plan.bound.architecture.roles[reached.site.role]
    pairs = [_factors(plan, site, role, device) for site in sites]
    At = torch.cat([A for A, _ in pairs]).T
    Bt = torch.cat([B for _, B in pairs], dim=1).T
    deltas = [plan.delta(site) for site in sites]
    if any(delta.magnitude is not None for delta in deltas):
        return _dora(deltas, At, Bt, reached, wanted)
    Bt = Bt * _output_scale(reached.module)
    c = _constant(plan, sites[0], deltas[0], device) if deltas[0].bias is not None else None
    return Kernel(At.to(wanted), Bt.to(wanted), c=None if c is None else c.to(wanted), embedding=deltas[0].embedding)


def _factors(plan: Plan, site: Site, role: Role, device: torch.device) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]`` in fp32, scale and gain in B; a part's rows in their place."""
    delta = plan.delta(site)
    gain = 1.0 if site.layer is None else plan.gains.get(site.layer, 1.0)
    A, B = as_torch(delta.A, device).float(), as_torch(delta.B, device).float() * (delta.scale * gain)
    if site.part is None:
        return A, B
    rows = role_rows(role, plan.bound.dims)
    if rows is None or site.part not in rows:
        raise refuse(
            "part", str(site), "where this part lies in its weight is not known", "an architecture that says so"
        )
    whole = B.new_zeros(sum(map(len, rows.values())), B.shape[1])
    whole[torch.from_numpy(rows[site.part]).to(device)] = B
    return A, whole


def _output_scale(module: nn.Module) -> float:
    """What an embedding multiplies its rows by on their way out (Gemma 3), which ΔW must be too."""
    scale = getattr(module, "embed_scale", 1.0)
    return float(scale) if isinstance(module, nn.Embedding) else 1.0


def _constant(plan: Plan, site: Site, delta: LowRank, device: torch.device) -> Tensor:
    gain = 1.0 if site.layer is None else plan.gains.get(site.layer, 1.0)
    assert delta.bias is not None
    return as_torch(delta.bias, device).float() * (delta.scale * gain)


def _dora(deltas: list[LowRank], At: Tensor, Bt: Tensor, reached: Reached, dtype: torch.dtype) -> Kernel:
    """The kernel of g = m / ‖W + ΔW‖ by rows of ``[out, in]``, in fp32 and then rounded once."""
    delta = deltas[0]
    assert delta.magnitude is not None
    if len(deltas) > 1:
        raise refuse("part", reached.name, "DoRA on parts of a fused weight", "DoRA on the whole weight")
    weight = weight_of(reached)
    norm = torch.linalg.vector_norm(weight + (At @ Bt).T, dim=1)
    g = as_torch(delta.magnitude, weight.device).float() / norm
    Bt = Bt * g * _output_scale(reached.module)
    bias = getattr(reached.module, "bias", None)
    c = None if bias is None else ((1 - g) * bias.detach().float()).to(dtype)
    return Kernel(At.to(dtype), Bt.to(dtype), g.to(dtype), c, embedding=delta.embedding)


def weight_of(reached: Reached) -> Tensor:
    """The module's weight as ``[out, in]`` in fp32. Raises :class:`RefusedError` for one that cannot be read."""
    weight = reached.module.weight
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and type(weight) in (Tensor, nn.Parameter)
    if not isinstance(weight, Tensor) or not plain:
        remedy = "Load the base without quantisation, or merge the adapter into it."
        raise refuse("quantised", reached.name, "DoRA on a quantised weight", "a weight in floats", remedy)
    turned = isinstance(reached.module, nn.Embedding) or type(reached.module).__name__ == "Conv1D"
    whole: Tensor = (weight.T if turned else weight).detach().float()
    return whole


def _home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    floats = weight.is_floating_point() and weight.itemsize > 1
    return weight.device, weight.dtype if floats else torch.float32


def require_finite(built: Mapping[Site, Change], plan: Plan) -> None:
    """Raises :class:`RefusedError` for every module where what acts is not finite."""
    bad = [site for site, kernel in built.items() if not all(bool(t.isfinite().all()) for t in numbers(kernel))]
    if bad:
        name, found = plan.bound.adapter.name, "NaN or Inf among its numbers, in the dtype of the module"
        remedy = "It is damaged, or too large for that dtype: load the model in fp32 or bf16."
        raise RefusedError(Problem("nonfinite", f"{name} {site}", found, "finite numbers", remedy) for site in bad)
