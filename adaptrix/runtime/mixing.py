"""Several adapters at one module: a weighted sum of them, or one for each row of a batch.

The kernels of one family become one: low-rank ones, and spectral ones over the same axes. Where there are several
families, each acts in its turn.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from adaptrix.architecture import Site
from adaptrix.runtime.kernel import ActiveKernel, Adding
from adaptrix.runtime.replaced import Mixed, Replaced, SiteKernel, adding_only
from adaptrix.runtime.trainable import Sum, Trainable


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Changes that act one after another. Only the first may read the module's own output, as DoRA does."""

    parts: tuple[ActiveKernel, ...]

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return any(part.embedding for part in self.parts)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the module's output ``y`` for its input ``x``."""
        first, *others = (part.delta(x, y) for part in self.parts)
        return sum(others, start=first)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with all of it added."""
        for part in self.parts:
            y = part.add(x, y)
        return y


def summed(site: Site, terms: Sequence[tuple[float, SiteKernel | Trainable]]) -> ActiveKernel:
    """One change for a weighted sum; a module that is replaced whole has none, unless it is alone."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    adding = [(weight, change) for weight, change in terms if not isinstance(change, Trainable | Replaced)]
    if len(adding) != len(terms):
        return Sum(tuple(adding_only(site, terms)))
    families = _families([kernel for _, kernel in adding])
    made = [one.combined([term for term in adding if term[1].family == one.family]) for one in families]
    return _together(families, made)


def by_row(changes: Sequence[SiteKernel | Trainable | None]) -> ActiveKernel:
    """One change for a batch with a change, or the base, for each row."""
    adding = [change for change in changes if not isinstance(change, Trainable | Replaced)]
    if len(adding) != len(changes):
        return Mixed(tuple(changes))
    families = _families([kernel for kernel in adding if kernel is not None])
    made = [one.by_row([k if k is not None and k.family == one.family else None for k in adding]) for one in families]
    return _together(families, made)


def _families(kernels: Iterable[Adding]) -> list[Adding]:
    """One of each family, those that read the module's output before the others."""
    distinct: dict[Hashable, Adding] = {}
    for kernel in kernels:
        distinct.setdefault(kernel.family, kernel)
    return sorted(distinct.values(), key=lambda kernel: not kernel.reads_output)


def _together(families: Sequence[Adding], made: Sequence[ActiveKernel]) -> ActiveKernel:
    """One change made of those of the families."""
    if len(made) == 1:
        return made[0]
    if sum(kernel.reads_output for kernel in families) > 1:  # each of the module's own output
        return Sum(tuple((1.0, kernel) for kernel in made))
    return Together(tuple(made))
