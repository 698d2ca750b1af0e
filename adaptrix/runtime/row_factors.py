"""Factors that the caller makes for every row of a pass: a hypernetwork's, say, with its graph behind them.

y ← y + x·Aᵀ·Bᵀ, with an A and a B of the row's own. Nothing is copied to numpy or remembered, so a gradient goes
through the pass into whatever made the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.architecture import Site
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import gain_of
from adaptrix.runtime.hooks import Hooks
from adaptrix.runtime.parameter_kernel import ParameterKernel
from adaptrix.runtime.rows import rows_of
from adaptrix.runtime.selection import Selection
from adaptrix.tensor import Tensor as Stored

#: path of a module -> A ``[rows, r, in]`` and B ``[rows, out, r]``
RowFactors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class RowFactorKernel:
    """``At`` ``[rows, in, r]``, ``Bt`` ``[rows, r, out]`` with the scale folded in."""

    At: Tensor
    Bt: Tensor
    embedding: ClassVar[bool] = False

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[batch, …, out]``. Rows that lie together share their factors, as beams do."""
        count = rows_of(x, len(self.At))
        inner = x.to(self.At.dtype).reshape(count, -1, x.shape[-1]) @ self.At
        return (inner @ self.Bt).view(y.shape)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row's delta added."""
        return (y + self.delta(x, y)).to(y.dtype)


class GivenFactors:
    """Binds factors to a model, as an adapter of their paths and shapes is bound, once for each set of these.

    ``build``: from an adapter to the sites that it changes, and its plan.
    """

    def __init__(self, build: Callable[[Any], tuple[Mapping[Site, Any], Plan]]) -> None:
        self._build = build
        self._known: dict[frozenset[tuple[str, int, int, int]], Mapping[Site, tuple[str, float]]] = {}

    def changes(self, factors: RowFactors, scale: float) -> dict[Site, RowFactorKernel]:
        """The kernels of the factors by site. Raises :class:`RefusedError` with every one that does not fit."""
        if problems := list(_faults(factors)):
            raise RefusedError(problems)
        key = frozenset((path, *A.shape[1:], B.shape[1]) for path, (A, B) in factors.items())
        if key not in self._known:
            self._known[key] = self._found(factors)
        found = self._known[key].items()
        return {site: _live(*factors[path], scale * gain) for site, (path, gain) in found}

    def _found(self, factors: RowFactors) -> Mapping[Site, tuple[str, float]]:
        """By site the path that it has among the factors, and the plan's gain."""
        sites, plan = self._build(_stand_in(factors))
        bound = plan.bound
        roles, paths = bound.architecture.roles, {site: bound.targets[site].path for site in sites}
        embeddings = [path for site, path in paths.items() if roles[site.role].orientation == "embedding"]
        if inside := [site for site in sites if isinstance(sites[site], ParameterKernel)]:
            raise refuse(
                "kind-unsupported", paths[inside[0]], ParameterKernel.described, "modules that multiply by a matrix"
            )
        if embeddings:
            raise refuse("kind-unsupported", embeddings[0], "it is an embedding", "modules that multiply by a matrix")
        # binding may rename modules, and keeps their order
        given = dict(zip((target.path for target in bound.adapter.deltas), factors, strict=True))
        return {site: (given[path], gain_of(plan, site)) for site, path in paths.items()}


def given_selection(hooks: Hooks, places: GivenFactors, factors: RowFactors, scale: float, version: int) -> Selection:
    """The selection of factors, their modules hooked; the base takes no gradients where the factors do."""
    changes = places.changes(factors, scale)
    hooks.cover(changes)
    if any(factor.requires_grad for pair in factors.values() for factor in pair):
        hooks.freeze()
    return Selection(changes, key=("given", version), rows=max(len(A) for A, _ in factors.values()))


def _live(A: Tensor, B: Tensor, scale: float) -> RowFactorKernel:
    return RowFactorKernel(A.transpose(1, 2), (B if scale == 1 else B * scale).transpose(1, 2))


def _faults(factors: RowFactors) -> Iterator[Problem]:
    rows = {len(factor) for pair in factors.values() for factor in pair if factor.dim() == 3}
    if len(rows) != 1:
        yield Problem("option", "factors", f"they are for {sorted(rows)} rows", "a pair of them for every row")
    for path, (A, B) in factors.items():
        if A.dim() != 3 or B.dim() != 3 or A.shape[1] != B.shape[2]:
            found, expected = f"A {list(A.shape)} and B {list(B.shape)}", "A [rows, r, in] and B [rows, out, r]"
            yield Problem("option", path, found, expected)
        elif not A.is_floating_point() or A.dtype is not B.dtype:
            yield Problem("dtype", path, f"A is {A.dtype} and B {B.dtype}", "floats, both of one dtype")


def _stand_in(factors: RowFactors) -> Adapter:
    """An adapter of the same modules and sizes, all zeros: what is wrong with it is wrong with the factors."""
    deltas = {}
    for path, (A, B) in factors.items():
        zero_A, zero_B = (Stored.of(np.zeros(tuple(factor.shape[1:]), np.float32)) for factor in (A, B))
        deltas[Target(path)] = LowRank(zero_A, zero_B, alpha=float(A.shape[1]))
    return Adapter("factors", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "factors"))
