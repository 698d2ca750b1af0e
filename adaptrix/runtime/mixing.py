"""Several adapters at one module: a weighted sum of them, or one for each row of a batch.

Low-rank kernels become one, and so do spectral ones over the same axes; where there are both, each acts in
its turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from adaptrix.architecture import Site
from adaptrix.runtime.kernel import Kernel, combined
from adaptrix.runtime.replaced import Mixed, SiteKernel, adding_only
from adaptrix.runtime.rows import RowKernels, side_by_side
from adaptrix.runtime.spectral import (
    Adding,
    SpectralKernel,
    SpectralRowKernels,
    combined_spectral,
    distinct_axes,
    spectral_rows,
)
from adaptrix.runtime.trainable import Sum, Trainable

#: what acts without leaves to be learned, and on what a module says alone
Part = Kernel | RowKernels | SpectralKernel | SpectralRowKernels


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Changes that act one after another. Only the first may look at what the module says, as DoRA does."""

    parts: tuple[Part, ...]

    @property
    def embedding(self) -> bool:
        """Whether it changes what enters every layer."""
        return any(part.embedding for part in self.parts)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to ``y``."""
        first, *others = (part.delta(x, y) for part in self.parts)
        return sum(others, start=first)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with all of it added."""
        for part in self.parts:
            y = part.add(x, y)
        return y


#: what several adapters come to at a module
Mixture = SiteKernel | Trainable | Sum | Part | Mixed | Together


def summed(site: Site, terms: Sequence[tuple[float, SiteKernel | Trainable]]) -> Mixture:
    """One change for a weighted sum; a module that is replaced whole has none, unless it is alone."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    adding = adding_only(site, terms)
    if any(isinstance(change, Trainable) for _, change in adding):
        return Sum(tuple(adding))
    low = [(weight, change) for weight, change in adding if isinstance(change, Kernel)]
    spectral = [(weight, change) for weight, change in adding if isinstance(change, SpectralKernel)]
    by_axes = [
        combined_spectral([term for term in spectral if term[1].axes is axes])
        for axes in distinct_axes(change for _, change in spectral)
    ]
    return _one([*([combined(low)] if low else []), *by_axes])


def by_row(changes: Sequence[SiteKernel | Trainable | None]) -> Mixture:
    """One change for a batch with a change, or the base, for each row."""
    if any(not isinstance(change, Adding | None) for change in changes):
        return Mixed(tuple(changes))
    low = [change if isinstance(change, Kernel) else None for change in changes]
    spectral = [change if isinstance(change, SpectralKernel) else None for change in changes]
    by_axes = [spectral_rows(spectral, axes) for axes in distinct_axes(spectral)]
    return _one([*([side_by_side(low)] if any(low) else []), *by_axes])


def _one(parts: Sequence[Part]) -> Mixture:
    """Several parts as one."""
    return parts[0] if len(parts) == 1 else Together(tuple(parts))
