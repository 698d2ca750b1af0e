"""The kernels of an adapter in training: made again from its leaves at every pass, so that gradients reach them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.delta import Delta
from adaptrix.planning.plan import Plan
from adaptrix.runtime.kernel import ActiveKernel, Adding


class Leaves(Protocol):
    """The numbers of the deltas on one module as leaves of autograd: every kind of delta has them in training."""

    @property
    def embedding(self) -> bool:
        """True for the leaves of a delta on an embedding."""

    @property
    def kernel(self) -> Adding:
        """The kernel of the leaves as they are now, differentiable in them."""

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""

    def named(self) -> Iterator[tuple[Site, str, nn.Parameter]]:
        """Each leaf by its site and by its name in an injection file."""

    def stored(self, plan: Plan) -> Mapping[Site, Delta]:
        """The plan's deltas with the numbers that the leaves have now."""


@dataclass(frozen=True, slots=True, eq=False)
class Trainable:
    """The kernel of an adapter in training at one module."""

    leaves: Leaves

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return self.leaves.embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        return self.leaves.delta(x, y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added."""
        return (y + self.delta(x, y)).to(y.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A weighted sum that is added up at every pass, as where a term is in training."""

    terms: tuple[tuple[float, ActiveKernel], ...]

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return self.terms[0][1].embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        first, *others = (weight * change.delta(x, y) for weight, change in self.terms)
        return sum(others, start=first)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the deltas added."""
        return (y + self.delta(x, y)).to(y.dtype)
