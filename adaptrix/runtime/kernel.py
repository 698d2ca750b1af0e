"""The kernel of one adapter at one module: its numbers, ready for the hook.

Every kind of delta on a weight (whatever its storage: Linear, Conv1D, quantised) comes to

    y ← g ⊙ y + c + x·Aᵀ·Bᵀ

with the scale and the plan's gain folded into B; g and c are absent for a plain LoRA. DoRA
(arXiv 2402.09353, as peft computes it) is g = m / ‖W + ΔW‖ by rows, B scaled by g too, and
c = (1 − g) ⊙ bias. On an embedding x·Aᵀ is a look-up.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, is_grad_enabled
from torch.nn import functional

from adaptrix.runtime.rows import RowKernels, side_by_side


class ActiveKernel(Protocol):
    """A change that a hook applies at one module: the kernel of one adapter, a mixture of several, a replacement."""

    @property
    def embedding(self) -> bool:
        """True where it acts on an embedding, and so changes what enters every layer."""

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` ``[batch, …, out]`` for its input ``x``; ``y`` stays as it is."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added, in its dtype; in place where that is safe and pays."""


class Adding(ActiveKernel, Protocol):
    """A change that one adapter adds to a module's output, its numbers fixed; every kind of delta becomes one.

    Several at one module become one where they are of one ``family``; of different families each acts in its turn.
    """

    #: the words of messages where it cannot be used: "a spectral delta, of full rank"
    described: ClassVar[str]
    #: whether the delta may depend on the module's output, as DoRA's does: then it acts before the others
    reads_output: ClassVar[bool]

    @property
    def family(self) -> Hashable:
        """Equal for kernels that can be added up, and divided among rows, as one."""

    def numbers(self) -> Iterator[Tensor]:
        """The tensors that come from the adapter, or are made with it."""

    def agrees(self, loaded: object) -> bool:
        """True if it has the numbers of one that was loaded before, within the precision of that one's dtype."""

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, Self]]) -> ActiveKernel:
        """One for the weighted sum of several of a family, exact."""

    @classmethod
    def by_row(cls, kernels: Sequence[Self | None]) -> ActiveKernel:
        """One for a batch with a kernel of a family, or none, for each of its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """``At`` ``[in, r]``, ``Bt`` ``[r, out]`` with the scale folded in, ``g`` and ``c`` ``[out]`` or None."""

    At: Tensor
    Bt: Tensor
    g: Tensor | None = None
    c: Tensor | None = None
    embedding: bool = False
    described: ClassVar[str] = "a low-rank delta"
    reads_output: ClassVar[bool] = True
    #: the dtype of a kernel that is x·Aᵀ·Bᵀ and nothing else; None for any other
    plain: torch.dtype | None = field(init=False)
    inp: int = field(init=False)
    out: int = field(init=False)

    def __post_init__(self) -> None:
        bare = self.g is None and self.c is None and not self.embedding
        object.__setattr__(self, "plain", self.At.dtype if bare else None)
        object.__setattr__(self, "inp", self.At.shape[0])  # asked for at every module of every pass
        object.__setattr__(self, "out", self.Bt.shape[1])

    @property
    def rank(self) -> int:
        return self.At.shape[1]

    def to(self, device: torch.device) -> Kernel:
        """The same on another device."""
        g, c = (None if vector is None else vector.to(device) for vector in (self.g, self.c))
        return replace(self, At=self.At.to(device), Bt=self.Bt.to(device), g=g, c=c)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``, in the kernel's dtype."""
        inner = functional.embedding(x, self.At) if self.embedding else x.to(self.At.dtype) @ self.At
        d = inner @ self.Bt
        if self.g is not None:
            d = d + (self.g - 1) * y.to(d.dtype)
        return d if self.c is None else d + self.c

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added; in place where no gradient needs what was there before."""
        plain = self.plain
        if x.dtype is not plain or y.dtype is not plain or not y.is_contiguous():
            return (y + self.delta(x, y)).to(y.dtype)
        inner = x.reshape(-1, self.inp).mm(self.At)
        if is_grad_enabled() and (y.requires_grad or inner.requires_grad):
            return torch.addmm(y.view(-1, self.out), inner, self.Bt).view(y.shape)
        y.view(-1, self.out).addmm_(inner, self.Bt)
        return y

    @property
    def family(self) -> Hashable:
        """One for all: their ranks lie side by side."""
        return Kernel

    def numbers(self) -> Iterator[Tensor]:
        """Both factors, and the vectors that there are."""
        return (tensor for tensor in (self.At, self.Bt, self.g, self.c) if tensor is not None)

    def agrees(self, loaded: object) -> bool:
        """True if the factors are those of the one loaded; under DoRA's g, in which the base is too, A alone counts."""
        if not isinstance(loaded, Kernel):
            return False
        pairs = [(self.At, loaded.At)] + ([(self.Bt, loaded.Bt)] if self.g is None else [])
        return all(one.shape == other.shape and torch.allclose(one.to(other), other, rtol=1e-3) for one, other in pairs)

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, Kernel]]) -> Kernel:
        """One kernel for a weighted sum, exact: ranks side by side, weights folded into B."""
        if len(terms) == 1 and terms[0][0] == 1.0:
            return terms[0][1]
        first = terms[0][1]
        gains = [weight * (kernel.g - 1) for weight, kernel in terms if kernel.g is not None]
        constants = [weight * kernel.c for weight, kernel in terms if kernel.c is not None]
        return replace(
            first,
            At=torch.cat([kernel.At for _, kernel in terms], dim=1),
            Bt=torch.cat([weight * kernel.Bt for weight, kernel in terms]),
            g=torch.stack(gains).sum(0) + 1 if gains else None,
            c=torch.stack(constants).sum(0) if constants else None,
        )

    @classmethod
    def by_row(cls, kernels: Sequence[Kernel | None]) -> RowKernels:
        """One kernel for a batch's rows: the factors of all of them side by side."""
        return side_by_side(kernels)
