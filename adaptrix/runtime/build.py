"""From a plan to kernels: one kernel for each module of the model that the plan changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.delta import Spectral
from adaptrix.errors import Problem, RefusedError
from adaptrix.planning.plan import Plan
from adaptrix.runtime.decompositions import Decompositions
from adaptrix.runtime.factors import device_of, factors, is_embedding, kernel_of
from adaptrix.runtime.modules import Reached, whole_site
from adaptrix.runtime.replaced import SiteKernel, numbers
from adaptrix.runtime.spectral import Adding


def kernels(plan: Plan, modules: Mapping[Site, Reached], decompositions: Decompositions) -> dict[Site, Adding]:
    """The kernels of a plan by the site of the whole weight, on each module's own device.

    The arithmetic is in the dtype of the module's weight, in fp32 for a quantised one. ``decompositions``: those of
    the model's weights, for spectral deltas.
    Raises :class:`RefusedError` for what cannot be computed; the numbers are left to :func:`require_finite`.
    """
    built: dict[Site, Adding] = {}
    problems = foreign = list(decompositions.problems(plan, modules))
    for whole, sites in by_module(plan).items():
        if foreign and isinstance(plan.delta(sites[0]), Spectral):
            continue
        try:
            built[whole] = _kernel(plan, sites, modules[whole], decompositions)
        except RefusedError as error:
            problems = [*problems, *error.problems]
    if problems:
        raise RefusedError(problems)
    return built


def by_module(plan: Plan) -> dict[Site, list[Site]]:
    """The active sites by that of the whole weight."""
    groups: dict[Site, list[Site]] = {}
    for site in plan.sites:
        groups.setdefault(whole_site(site), []).append(site)
    return groups


def home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module computes, and the float dtype of its weight; fp32 where it is quantised."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    floats = weight.is_floating_point() and weight.itemsize > 1
    return device_of(module), weight.dtype if floats else torch.float32


def _kernel(plan: Plan, sites: list[Site], reached: Reached, decompositions: Decompositions) -> Adding:
    device, dtype = home(reached.module)
    delta = plan.delta(sites[0])
    if isinstance(delta, Spectral) and len(sites) == 1:
        return decompositions.kernel(plan, sites[0], delta, reached, dtype)
    parts = [factors(plan, site, device, torch.promote_types(dtype, torch.float32)) for site in sites]
    return kernel_of(parts, reached, dtype, embedding=is_embedding(delta))


def require_finite(built: Mapping[Site, SiteKernel], plan: Plan) -> None:
    """Raises :class:`RefusedError` for every module where what acts is not finite."""
    everything = [tensor for change in built.values() for tensor in numbers(change)]
    if bool(nn.utils.get_total_norm(everything).isfinite()):  # one question for all; its sum may overflow, too
        return
    bad = [site for site, kernel in built.items() if not all(bool(t.isfinite().all()) for t in numbers(kernel))]
    if bad:
        name, found = plan.bound.adapter.name, "NaN or Inf among its numbers, in the dtype of the module"
        remedy = "It is damaged, or too large for that dtype: load the model in fp32 or bf16."
        raise RefusedError(Problem("nonfinite", f"{name} {site}", found, "finite numbers", remedy) for site in bad)
