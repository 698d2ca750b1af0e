"""Makes kernels of low-rank deltas: once for an adapter that stays as it is, at every pass for one in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.architecture.layout import role_rows
from adaptrix.delta import Delta, LowRank, Parametrised
from adaptrix.errors import RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.modules import Reached
from adaptrix.torch_tensor import as_torch


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One delta as its checkpoint has it: ``A`` ``[r, in]``, ``B`` ``[out, r]``, ``bias`` and ``magnitude`` ``[out]``.

    ``scale``: what ΔW = scale · B·A is multiplied by, the plan's gain included. ``rows``: for a part of a fused
    weight, where its rows lie among the ``height`` of the whole one.
    """

    A: Tensor
    B: Tensor
    bias: Tensor | None
    magnitude: Tensor | None
    scale: float
    rows: Tensor | None
    height: int

    @property
    def whole(self) -> Tensor:
        """B times scale, with the rows of the whole weight, zero but for its own."""
        B = self.B if self.scale == 1 else self.B * self.scale
        return B if self.rows is None else B.new_zeros(self.height, B.shape[1]).index_copy(0, self.rows, B)


def factors(plan: Plan, site: Site, device: torch.device, dtype: torch.dtype) -> Factors:
    """The numbers of the delta that a plan has at a site. Raises :class:`RefusedError` for a part of unknown rows."""
    delta = plan.delta(site)
    if isinstance(delta, Parametrised):
        delta, _ = delta.low_rank()
    if not isinstance(delta, LowRank):
        raise beside_others(site, delta)
    A, B, bias, magnitude = (
        None if tensor is None else as_torch(tensor, device, dtype)
        for tensor in (delta.A, delta.B, delta.bias, delta.magnitude)
    )
    assert A is not None and B is not None  # noqa: PT018  # a delta has both
    rows, height = _rows(plan, site, device)
    return Factors(A, B, bias, magnitude, delta.scale * gain_of(plan, site), rows, height)


def beside_others(site: Site, delta: Delta) -> RefusedError:
    """A refusal of a delta of another kind that does not go together with the others on its weight."""
    found = f"a {delta.kind} delta beside others on one weight"
    return refuse("part", str(site), found, "one delta on a weight")


def gain_of(plan: Plan, site: Site) -> float:
    """The factor that the plan multiplies ΔW of a site by."""
    return 1.0 if site.layer is None else plan.gains.get(site.layer, 1.0)


def kernel_of(parts: Sequence[Factors], reached: Reached, dtype: torch.dtype, *, embedding: bool) -> Kernel:
    """The kernel of the deltas on one module, side by side where they are those of its parts; rounded once.

    Differentiable in the factors; DoRA's norm is a constant, as its paper (arXiv 2402.09353, section 4.3) has it.
    Raises :class:`RefusedError` for DoRA on parts of a weight, or on one that cannot be read.
    """
    first = parts[0]
    At = _joined([part.A for part in parts], 0).T
    Bt = _joined([part.whole for part in parts], 1).T
    g, c = None, None if first.bias is None else first.bias * first.scale
    if any(part.magnitude is not None for part in parts):
        g, c = _normed(parts, At, Bt, reached)
        Bt = Bt * g
    if (scale := output_scale(reached.module)) != 1:
        Bt = Bt * scale
    g, c = (None if vector is None else vector.to(dtype) for vector in (g, c))
    At, Bt = (factor if factor.dtype is dtype else factor.to(dtype) for factor in (At, Bt))
    return Kernel(At, Bt, g, c, embedding)


def weight_of(reached: Reached) -> Tensor:
    """The module's weight as ``[out, in]`` in fp32, or in double if it is.

    Raises :class:`RefusedError` for one that cannot be read."""
    weight = reached.module.weight
    plain = isinstance(weight, Tensor) and weight.is_floating_point() and type(weight) in (Tensor, nn.Parameter)
    if not isinstance(weight, Tensor) or not plain:
        remedy = "Load the base without quantisation, or merge the adapter into it."
        raise refuse("quantised", reached.name, "DoRA on a quantised weight", "a weight in floats", remedy)
    turned = isinstance(reached.module, nn.Embedding) or type(reached.module).__name__ == "Conv1D"
    whole: Tensor = (weight.T if turned else weight).detach().to(torch.promote_types(weight.dtype, torch.float32))
    return whole


def is_embedding(delta: Delta) -> bool:
    """True for a delta that changes the rows of an embedding."""
    return isinstance(delta, LowRank) and delta.embedding


def home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device that a module computes on, and the float dtype of its weight; fp32 where it is quantised."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    floats = weight.is_floating_point() and weight.itemsize > 1
    return device_of(module), weight.dtype if floats else torch.float32


def output_scale(module: nn.Module) -> float:
    """The factor that an embedding multiplies its output by (Gemma 3), and that ΔW needs too."""
    return float(getattr(module, "embed_scale", 1.0)) if isinstance(module, nn.Embedding) else 1.0


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on: that of its parameters, or the one accelerate brings them to."""
    if offloaded(module):
        hook: Any = module._hf_hook
        return torch.device(hook.execution_device)
    weight = module._parameters.get("weight")  # called for every module of every adapter: a search would be slow
    return next(module.parameters()).device if weight is None else weight.device


def offloaded(module: nn.Module) -> bool:
    """True for a module whose parameters accelerate keeps elsewhere until it runs."""
    return "_hf_hook" in vars(module) and next(module.parameters()).is_meta


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """A block in which a module that is offloaded has its weights."""
    if offloaded(module):
        from accelerate.utils import align_module_device  # there, as it has offloaded the module

        with align_module_device(module):
            yield
    else:
        yield


def _rows(plan: Plan, site: Site, device: torch.device) -> tuple[Tensor | None, int]:
    if site.part is None:
        return None, 0
    rows = role_rows(plan.bound.architecture.roles[site.role], plan.bound.dims)
    if rows is None or site.part not in rows:
        found = "where this part lies in its weight is not known"
        raise refuse("part", str(site), found, "an architecture that says so")
    return torch.from_numpy(rows[site.part]).to(device), sum(map(len, rows.values()))


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _normed(parts: Sequence[Factors], At: Tensor, Bt: Tensor, reached: Reached) -> tuple[Tensor, Tensor | None]:
    """DoRA's g = m / ‖W + ΔW‖ by rows of ``[out, in]``, and the constant (1 − g) ⊙ bias that goes with it."""
    magnitude = parts[0].magnitude
    if magnitude is None or len(parts) > 1:
        raise refuse("part", reached.name, "DoRA on parts of a fused weight", "DoRA on the whole weight")
    with torch.no_grad(), present(reached.module):
        norm = torch.linalg.vector_norm(weight_of(reached) + (At @ Bt).T, dim=1)
        bias = getattr(reached.module, "bias", None)
        bias = None if bias is None else bias.to(norm.dtype)
    g = magnitude / norm
    return g, None if bias is None else (1 - g) * bias
