"""Makes kernels of a plan: one for each module of the model that the plan changes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from adaptrix.architecture import Site
from adaptrix.errors import Problem, RefusedError
from adaptrix.planning.plan import Plan
from adaptrix.runtime.decompositions import Decompositions
from adaptrix.runtime.kernel import Adding
from adaptrix.runtime.kinds import kind_at
from adaptrix.runtime.modules import Reached, whole_site
from adaptrix.runtime.parameter_factors import parameter_kernel
from adaptrix.runtime.replaced import SiteKernel


def kernels(plan: Plan, modules: Mapping[Site, Reached], decompositions: Decompositions) -> dict[Site, Adding]:
    """The kernels of a plan by the site of the whole weight, on each module's own device.

    The arithmetic is in the dtype of the module's weight, in fp32 for a quantised one. ``decompositions``: those of
    the model's weights, for spectral deltas.
    Raises :class:`RefusedError` for what cannot be computed; the numbers are left to :func:`require_finite`.
    """
    built: dict[Site, Adding] = {}
    problems = foreign = list(decompositions.problems(plan, modules))
    for whole, sites in by_module(plan, modules).items():
        if foreign and plan.delta(sites[0]).needs_base:
            continue
        try:
            if modules[whole].parameter is None:
                built[whole] = kind_at(plan, sites[0], "attaching").build(plan, sites, modules[whole], decompositions)
            else:
                built[whole] = parameter_kernel(plan, sites, modules)
        except RefusedError as error:
            problems = [*problems, *error.problems]
    if problems:
        raise RefusedError(problems)
    return built


def by_module(plan: Plan, modules: Mapping[Site, Reached]) -> dict[Site, list[Site]]:
    """The active sites by that of the whole weight."""
    groups: dict[Site, list[Site]] = {}
    for site in plan.sites:
        groups.setdefault(modules[whole_site(site)].site, []).append(site)
    return groups


def require_finite(built: Mapping[Site, SiteKernel], plan: Plan) -> None:
    """Raises :class:`RefusedError` for every module where what acts is not finite."""
    everything = [tensor for change in built.values() for tensor in change.numbers()]
    if bool(nn.utils.get_total_norm(everything).isfinite()):  # one question for all; its sum may overflow, too
        return
    bad = [site for site, kernel in built.items() if not all(bool(t.isfinite().all()) for t in kernel.numbers())]
    if bad:
        name, found = plan.bound.adapter.name, "NaN or Inf among its numbers, in the dtype of the module"
        remedy = "It is damaged, or too large for that dtype: load the model in fp32 or bf16."
        raise RefusedError(Problem("nonfinite", f"{name} {site}", found, "finite numbers", remedy) for site in bad)
