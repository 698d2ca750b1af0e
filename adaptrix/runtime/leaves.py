"""The leaves of each kind of delta: the numbers of its checkpoint as parameters, and the kernel of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptrix.architecture import Site
from adaptrix.delta import Delta, LowRank, Spectral
from adaptrix.errors import RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import Factors, factors, gain_of, home, is_embedding, kernel_of, present, weight_of
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.spectral import Axes, SpectralKernel
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import as_torch


@dataclass(frozen=True, slots=True, eq=False)
class LowRankLeaves:
    """The leaves of low-rank deltas. ``parts``: theirs by site, in the ``dtype`` of all.

    ``dropout``: the share of the module's input that the adapter sees as zero while the module is in training
    mode, as in peft; embeddings have none.
    """

    parts: Mapping[Site, Factors]
    reached: Reached
    dtype: torch.dtype
    dropout: float
    embedding: bool

    @property
    def kernel(self) -> Kernel:
        """The kernel of the leaves as they are now, differentiable in them."""
        return kernel_of(list(self.parts.values()), self.reached, self.dtype, embedding=self.embedding)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        kernel = self.kernel
        if not self.dropout or self.embedding or not self.reached.module.training:
            return kernel.delta(x, y)
        x = functional.dropout(x.to(self.dtype), self.dropout)
        if kernel.g is None:
            return kernel.delta(x, y)
        with present(self.reached.module):
            weight = weight_of(self.reached).to(self.dtype)
        return replace(kernel, c=None).delta(x, functional.linear(x, weight))

    def named(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """A, B, bias and magnitude of each part, where it has them."""
        for site, part in self.parts.items():
            found = {"lora_A": part.A, "lora_B": part.B, "lora_B.bias": part.bias, "magnitude": part.magnitude}
            yield from ((site, name, leaf) for name, leaf in found.items() if isinstance(leaf, nn.Parameter))

    def stored(self, plan: Plan) -> Mapping[Site, Delta]:
        """The deltas with A, B, bias and magnitude as they are now."""
        return {site: _with_factors(plan.delta(site), part) for site, part in self.parts.items()}


@dataclass(frozen=True, slots=True, eq=False)
class SpectralLeaves:
    """The leaf of a spectral delta at the module of ``site``: z ``[k]``, as its file has it.

    ``s``: the singular values, in the dtype of z; ``gain``: the plan's. The axes are the weight's and stay as they are.
    """

    site: Site
    axes: Axes
    z: nn.Parameter
    s: Tensor
    gain: float
    embedding: ClassVar[bool] = False

    @property
    def kernel(self) -> SpectralKernel:
        """The kernel of z as it is now, differentiable in it."""
        return SpectralKernel(self.axes, self.s * (self.z - 1) * self.gain)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        return self.kernel.delta(x, y)

    def named(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """The leaf z."""
        yield self.site, "spectral_z", self.z

    def stored(self, plan: Plan) -> Mapping[Site, Delta]:
        """The delta with z as it is now."""
        delta = plan.delta(self.site)
        assert isinstance(delta, Spectral)  # it was made of one
        return {self.site: replace(delta, z=_array(self.z))}


def low_rank_leaves(
    plan: Plan,
    sites: list[Site],
    reached: Reached,
    dropout: float,
    _loaded: object,
) -> LowRankLeaves:
    """The leaves of low-rank deltas on one module."""
    device, dtype = _home(reached)
    parts = {site: _as_leaves(factors(plan, site, device, dtype)) for site in sites}
    return LowRankLeaves(parts, reached, dtype, dropout, is_embedding(plan.delta(sites[0])))


def spectral_leaves(
    plan: Plan,
    sites: list[Site],
    reached: Reached,
    _dropout: float,
    loaded: object,
) -> SpectralLeaves:
    """The leaf of a spectral delta, over the axes of the kernel that was loaded."""
    delta = plan.delta(sites[0])
    if not isinstance(loaded, SpectralKernel) or not isinstance(delta, Spectral):
        raise file_changed(plan, sites[0])
    z, s = (as_torch(tensor, *_home(reached)) for tensor in (delta.z, delta.S))
    return SpectralLeaves(sites[0], loaded.axes, nn.Parameter(z), s, gain_of(plan, sites[0]))


def file_changed(plan: Plan, site: Site) -> RefusedError:
    """A refusal: the leaves would not be the numbers that act."""
    where, remedy = f"{plan.bound.adapter.name} {site}", "session.load(name, uri) loads them as they are now."
    return refuse("file-changed", where, "its files have changed since it was loaded", "the same files", remedy)


def _home(reached: Reached) -> tuple[torch.device, torch.dtype]:
    """The device of the leaves of a module, and their dtype: no less than fp32."""
    device, own = home(reached.module)
    return device, torch.float64 if own is torch.float64 else torch.float32


def _as_leaves(part: Factors) -> Factors:
    bias = None if part.bias is None else nn.Parameter(part.bias)
    magnitude = None if part.magnitude is None else nn.Parameter(part.magnitude)
    return replace(part, A=nn.Parameter(part.A), B=nn.Parameter(part.B), bias=bias, magnitude=magnitude)


def _with_factors(delta: Delta, part: Factors) -> LowRank:
    assert isinstance(delta, LowRank)  # they were made of it
    vectors: dict[str, Any] = {
        name: None if leaf is None else _array(leaf)
        for name, leaf in (("bias", part.bias), ("magnitude", part.magnitude))
    }
    return replace(delta, A=_array(part.A), B=_array(part.B), **vectors)


def _array(leaf: Tensor) -> Stored:
    return Stored.of(leaf.detach().cpu().numpy())
