"""What an adapter in training does: made anew from its leaves at every pass, so that gradients reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptrix.architecture import Site
from adaptrix.runtime.factors import Factors, kernel_of, present, weight_of
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.reach import Reached


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
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

    def leaves(self) -> Iterator[nn.Parameter]:
        """A, B, bias and magnitude of each part, where it has them."""
        for part in self.parts.values():
            found = (part.A, part.B, part.bias, part.magnitude)
            yield from (tensor for tensor in found if isinstance(tensor, nn.Parameter))


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A weighted sum of which a term is in training, so that it is added up at every pass."""

    terms: tuple[tuple[float, Kernel | Learned], ...]

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
