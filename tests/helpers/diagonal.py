"""A third kind of delta, which the package knows nothing of: ΔW = diag(v) of a square weight."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from adaptrix.architecture import Site
from adaptrix.delta import LowRank, Truncation
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats import injection_kinds
from adaptrix.runtime import kinds as runtime_kinds
from adaptrix.tensor import Tensor


def tensor(rng, *shape):
    return Tensor.of(rng.standard_normal(shape).astype(np.float32))


def answers(protocol):
    """The names of what a protocol asks for."""
    own = {name for base in protocol.__mro__ for name in (*vars(base), *getattr(base, "__annotations__", {}))}
    return {name for name in own if not name.startswith("_")}


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal:
    v: Tensor

    axes: ClassVar[tuple[str, str]] = ("numbers of v (out)", "numbers of v (in)")
    needs_base: ClassVar[bool] = False
    resolved: ClassVar[bool] = True
    experts: ClassVar[int | None] = None
    kind: ClassVar[str] = "diagonal"
    scale: ClassVar[float] = 1.0

    @property
    def rank(self):
        return self.v.shape[0]

    @property
    def shape(self):
        return self.rank, self.rank

    def tensors(self):
        return {"diagonal_v": self.v}

    def energy_tensors(self):
        return (self.v,)

    def energy(self):
        return float((self.v.float64() ** 2).sum())

    def dense(self):
        return np.diag(self.v.float64())

    def site_problems(self, site, role, dims, where):
        if role.orientation != "linear":
            yield Problem("kind", where, "a diagonal delta", "a linear module")

    def of_rows(self, rows):
        raise RefusedError(Problem("kind", "diagonal delta", f"{len(rows)} rows of it are not square", "all rows"))

    def multiplied(self, gain):
        return Diagonal(Tensor.of(gain * self.v.float64()))

    def cast(self, dtype):
        return Diagonal(self.v.cast(dtype))

    def compared(self):
        return [self.v.float64()]

    def lost(self, rank):
        return Truncation.of(np.abs(self.v.float64()), rank)

    def smallest_rank(self, allowed):
        return next(rank for rank in range(1, self.rank + 1) if self.lost(rank).relative <= allowed)

    def low_rank(self, rank=None):
        kept = np.argsort(-np.abs(self.v.float64()))[:rank]
        factors = (np.eye(self.rank)[kept], self.dense()[:, kept])
        made = LowRank(*(Tensor.of(factor).cast("F32") for factor in factors), alpha=float(len(kept)))
        return made, self.lost(rank)

    def without_vectors(self):
        return self

    def is_transpose_of(self, other):
        return isinstance(other, Diagonal) and np.array_equal(self.v.float32(), other.v.float32())


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalKernel:
    """``v`` ``[out]`` for all rows, or ``[rows, 1, out]``."""

    v: torch.Tensor
    embedding: ClassVar[bool] = False
    described: ClassVar[str] = "a diagonal delta"
    reads_output: ClassVar[bool] = False

    def delta(self, x, y):
        return x * self.v

    def add(self, x, y):
        return y + x * self.v

    @property
    def family(self) -> Hashable:
        return DiagonalKernel

    def numbers(self) -> Iterator[torch.Tensor]:
        yield self.v

    def agrees(self, loaded):
        return isinstance(loaded, DiagonalKernel) and torch.allclose(self.v, loaded.v)

    @classmethod
    def combined(cls, terms):
        return cls(sum(weight * kernel.v for weight, kernel in terms))

    @classmethod
    def by_row(cls, kernels):
        some = next(kernel.v for kernel in kernels if kernel is not None)
        return cls(torch.stack([torch.zeros_like(some) if k is None else k.v for k in kernels])[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class DiagonalLeaves:
    site: Site
    v: torch.nn.Parameter
    embedding: ClassVar[bool] = False

    @property
    def kernel(self):
        return DiagonalKernel(self.v)

    def delta(self, x, y):
        return self.kernel.delta(x, y)

    def named(self):
        yield self.site, "diagonal_v", self.v

    def stored(self, plan):
        return {self.site: Diagonal(Tensor.of(self.v.detach().numpy().copy()))}


def vector(plan, site):
    return torch.from_numpy(plan.delta(site).v.float32().copy())


FILE_ROW = injection_kinds.InjectionKind(
    names=("diagonal_v",),
    entry=lambda delta, target: {"size": delta.rank},
    read=lambda entry, tensors, problems: Diagonal(tensors.pop(f"{entry.where}.diagonal_v")),
)
RUNTIME_ROW = runtime_kinds.KernelKind(
    build=lambda plan, sites, reached, decompositions: DiagonalKernel(vector(plan, sites[0])),
    learn=lambda plan, sites, reached, dropout, loaded: DiagonalLeaves(
        sites[0], torch.nn.Parameter(vector(plan, sites[0]))
    ),
    takes_bias=False,
)
