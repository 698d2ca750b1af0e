"""The kinds of delta on a live model: how each becomes a kernel, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from adaptrix.architecture import Site
from adaptrix.delta import PARAMETRISATIONS
from adaptrix.delta.kinds import row
from adaptrix.errors import refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.decompositions import Decompositions, spectral_kernel
from adaptrix.runtime.factors import factors, home, is_embedding, kernel_of
from adaptrix.runtime.kernel import Adding, Kernel
from adaptrix.runtime.leaves import low_rank_leaves, spectral_leaves
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.scale import scale_kernel, scale_leaves
from adaptrix.runtime.trainable import Leaves


@dataclass(frozen=True, slots=True)
class KernelKind:
    """One kind, the first of the deltas on one module being of it.

    ``build`` makes the kernel of the deltas at some sites of one module. ``learn`` makes leaves of them, given the
    share of dropout and the kernel that acts so far. ``takes_bias``: its kernels can hold a bias that is replaced, too.
    Both raise :class:`RefusedError` for deltas that do not go together on one module.
    """

    build: Callable[[Plan, list[Site], Reached, Decompositions], Adding]
    learn: Callable[[Plan, list[Site], Reached, float, object], Leaves]
    takes_bias: bool


def _low_rank_kernel(plan: Plan, sites: list[Site], reached: Reached, _: Decompositions) -> Kernel:
    device, dtype = home(reached.module)
    parts = [factors(plan, site, device, torch.promote_types(dtype, torch.float32)) for site in sites]
    return kernel_of(parts, reached, dtype, embedding=is_embedding(plan.delta(sites[0])))


def _not_trained(plan: Plan, sites: list[Site], _reached: Reached, _dropout: float, _loaded: object) -> Leaves:
    """Always raises :class:`RefusedError`: a LoRA of the same ΔW would learn another thing than its own few numbers."""
    delta = plan.delta(sites[0])
    remedy = f"`adaptrix convert SRC --to peft --rank {delta.rank}` makes a LoRA of it, which can be trained."
    where = f"{plan.bound.adapter.name} {sites[0]}"
    raise refuse("kind-unsupported", where, f"a {delta.kind} delta, which is not trained here", "a LoRA", remedy)


_LOW_RANK = KernelKind(_low_rank_kernel, low_rank_leaves, takes_bias=True)
_SPECTRAL = KernelKind(spectral_kernel, spectral_leaves, takes_bias=False)
_PARAMETRISED = KernelKind(_low_rank_kernel, _not_trained, takes_bias=True)

#: a row for every kind of delta that can be attached
KINDS: Mapping[str, KernelKind] = MappingProxyType(
    {
        "lora": _LOW_RANK,
        "dora": _LOW_RANK,
        "spectral": _SPECTRAL,
        **dict.fromkeys(PARAMETRISATIONS, _PARAMETRISED),
        "scale": KernelKind(scale_kernel, scale_leaves, takes_bias=False),
    }
)


def kind_at(plan: Plan, site: Site, doing: str) -> KernelKind:
    """The row for the delta that a plan has at a site; ``doing`` is what messages call the use of it: "training".

    Raises :class:`RefusedError` for a kind without a row.
    """
    return row(KINDS, plan.delta(site), f"{plan.bound.adapter.name} {site}", doing)
