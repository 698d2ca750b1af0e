"""What an adapter in training does: made anew from its leaves at every pass, so that gradients reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptrix.architecture import Site
from adaptrix.runtime.factors import Factors, kernel_of, present, weight_of
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.modules import Reached
from adaptrix.runtime.spectral import Adding, Axes, SpectralKernel


@dataclass(frozen=True, slots=True, eq=False)
class TrainableKernel:
    """What an adapter in training does at a module. ``parts``: its leaves by site, ``dtype`` theirs.

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
        """What is added to ``y`` for ``x``."""
        kernel = self.kernel
        if not self.dropout or self.embedding or not self.reached.module.training:
            return kernel.delta(x, y)
        x = functional.dropout(x.to(self.dtype), self.dropout)
        if kernel.g is None:
            return kernel.delta(x, y)
        with present(self.reached.module):
            weight = weight_of(self.reached).to(self.dtype)
        return replace(kernel, c=None).delta(x, functional.linear(x, weight))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added."""
        return (y + self.delta(x, y)).to(y.dtype)

    def leaves(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """A, B, bias and magnitude of each part, where it has them, by site and by their names in a file."""
        for site, part in self.parts.items():
            found = {"lora_A": part.A, "lora_B": part.B, "lora_B.bias": part.bias, "magnitude": part.magnitude}
            yield from ((site, name, leaf) for name, leaf in found.items() if isinstance(leaf, nn.Parameter))


@dataclass(frozen=True, slots=True, eq=False)
class TrainableSpectral:
    """What a spectral adapter in training does at the module of ``site``: its leaf is z ``[k]``, as its file has it.

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
        """What is added to ``y`` for ``x``."""
        return self.kernel.delta(x, y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added."""
        return (y + self.delta(x, y)).to(y.dtype)

    def leaves(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """Its z, by site and by its name in a file."""
        yield self.site, "spectral_z", self.z


#: what an adapter in training does at a module
Trainable = TrainableKernel | TrainableSpectral


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A weighted sum of which a term is in training, so that it is added up at every pass."""

    terms: tuple[tuple[float, Adding | Trainable], ...]

    @property
    def embedding(self) -> bool:
        """Whether it changes what enters every layer."""
        return self.terms[0][1].embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to ``y``."""
        first, *others = (weight * change.delta(x, y) for weight, change in self.terms)
        return sum(others, start=first)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the deltas added."""
        return (y + self.delta(x, y)).to(y.dtype)
