"""The kernels of (IA)³ numbers at one module: on its output, or on its input.

    y ← y + (l − 1) ⊙ y        and        y ← y + W·((l − 1) ⊙ x)

A weighted sum of adapters is a sum of vectors, and each row of a batch multiplies by its own. The numbers stay in fp32:
l is near 1, and l − 1 is what acts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.delta import Delta, Scale
from adaptrix.errors import refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.decompositions import Decompositions
from adaptrix.runtime.factors import beside_others, gain_of, home, offloaded
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.rows import rows_of
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import as_torch


@dataclass(frozen=True, slots=True, eq=False)
class ScaleKernel:
    """``d`` = l − 1 with the plan's gain folded in, ``[size]``, or ``[rows, 1, size]`` for the rows of a batch.

    ``module``: the one whose weight an input is multiplied with; None where the numbers are on the output.
    """

    d: Tensor
    module: nn.Module | None = None
    embedding: ClassVar[bool] = False
    described: ClassVar[str] = "(IA)³ numbers, which have no factors"
    reads_output: ClassVar[bool] = True

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` ``[batch, …, out]`` for its input ``x``."""
        if self.module is None:
            return self._scaled(y)
        x = self._scaled(x).to(x.dtype)
        out: Tensor = type(self.module).forward(self.module, x)  # not called: hooks would act on it
        bias = getattr(self.module, "bias", None)
        return out if bias is None else out - bias

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added."""
        return (y + self.delta(x, y)).to(y.dtype)

    def _scaled(self, numbers: Tensor) -> Tensor:
        wide = numbers.to(torch.promote_types(numbers.dtype, self.d.dtype))
        if self.d.dim() == 1:
            return wide * self.d
        return (wide.reshape(rows_of(wide, len(self.d)), -1, wide.shape[-1]) * self.d).view(wide.shape)

    @property
    def family(self) -> Hashable:
        """The module for numbers on its input, and one for all that are on outputs."""
        return ScaleKernel if self.module is None else self.module

    def numbers(self) -> Iterator[Tensor]:
        """The vector."""
        yield self.d

    def agrees(self, loaded: object) -> bool:
        """True if the numbers are those of the one loaded."""
        return isinstance(loaded, ScaleKernel) and torch.allclose(self.d.to(loaded.d), loaded.d, rtol=1e-3)

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, Self]]) -> ScaleKernel:
        """One kernel for a weighted sum, exact."""
        (weight, first), *others = terms
        return ScaleKernel(sum((w * kernel.d for w, kernel in others), start=weight * first.d), first.module)

    @classmethod
    def by_row(cls, kernels: Sequence[Self | None]) -> ScaleKernel:
        """One kernel for a batch's rows."""
        first = next(kernel for kernel in kernels if kernel is not None)
        rows = [torch.zeros_like(first.d) if kernel is None else kernel.d for kernel in kernels]
        return ScaleKernel(torch.stack(rows)[:, None], first.module)


@dataclass(frozen=True, slots=True, eq=False)
class ScaleLeaves:
    """The leaf of an (IA)³ delta at the module of ``site``: the numbers l as their file has them, in ``vector``."""

    site: Site
    vector: nn.Parameter
    gain: float
    module: nn.Module | None
    embedding: ClassVar[bool] = False

    @property
    def kernel(self) -> ScaleKernel:
        """The kernel of l as it is now, differentiable in it."""
        return ScaleKernel((self.vector.reshape(-1) - 1) * self.gain, self.module)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        return self.kernel.delta(x, y)

    def named(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """The leaf l."""
        yield self.site, "ia3_l", self.vector

    def stored(self, plan: Plan) -> Mapping[Site, Delta]:
        """The delta with l as it is now."""
        delta = plan.delta(self.site)
        assert isinstance(delta, Scale)  # it was made of one
        return {self.site: Scale(Stored.of(self.vector.detach().cpu().numpy().copy()), delta.inputs)}


def scale_kernel(plan: Plan, sites: list[Site], reached: Reached, _: Decompositions) -> ScaleKernel:
    """The kernel of an (IA)³ delta. Raises :class:`RefusedError` beside another delta of its weight."""
    leaves = _leaves(plan, sites, reached)
    return ScaleKernel(leaves.kernel.d.detach(), leaves.module)


def scale_leaves(plan: Plan, sites: list[Site], reached: Reached, _dropout: float, _loaded: object) -> ScaleLeaves:
    """The leaf of an (IA)³ delta, as :func:`scale_kernel`."""
    return _leaves(plan, sites, reached)


def _leaves(plan: Plan, sites: list[Site], reached: Reached) -> ScaleLeaves:
    delta = plan.delta(sites[0])
    if len(sites) != 1 or not isinstance(delta, Scale):
        raise beside_others(sites[0], delta)
    if delta.inputs and offloaded(reached.module):
        found = "(IA)³ numbers on the input of an offloaded module"
        remedy = "Attach to a model whose device_map offloads other modules."
        raise refuse("weights-not-loaded", reached.name, found, "a module in memory", remedy)
    device, own = home(reached.module)
    vector = nn.Parameter(as_torch(delta.vector, device, torch.promote_types(own, torch.float32)).clone())
    return ScaleLeaves(sites[0], vector, gain_of(plan, sites[0]), reached.module if delta.inputs else None)
