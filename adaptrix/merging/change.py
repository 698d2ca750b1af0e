"""What is to happen to one tensor of a base. Values only; :mod:`adaptrix.merging.product` does the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from adaptrix.architecture import Site
from adaptrix.architecture.layout import Rows
from adaptrix.delta import LowRank, Spectral
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """What one delta adds to one weight, or its bias to a bias.

    ``gain`` multiplies its scale. ``taken``: the rows of ΔW ``[out, in]`` that go to this weight, ``put``: the
    rows of the weight they go to; None is all, in order. ``source``, ``expert``: one of several stacked experts
    of the delta, of the weight; None where nothing is stacked, or each goes to its own.
    """

    site: Site
    delta: LowRank
    gain: float = 1.0
    taken: Rows | None = None
    put: Rows | None = None
    source: int | None = None
    expert: int | None = None

    @property
    def scale(self) -> float:
        return self.delta.scale * self.gain

    @property
    def out(self) -> int:
        """How many rows of the weight it changes."""
        return self.delta.shape[0] if self.taken is None else len(self.taken)


@dataclass(frozen=True, slots=True, eq=False)
class SpectralTerm:
    """What a spectral delta, with its U and V, adds to the weight that it is of; ``gain`` multiplies it."""

    site: Site
    delta: Spectral
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A tensor's new numbers: ``instead`` of its own, plus the ``terms``, then ``tokens`` replaced by ``rows``.

    ``spectral``: what is added where there is none of these.
    ``turned``: the weight is stored ``[in, out]`` (Conv1D, embeddings). ``bias``: the terms are biases of B. ``nf4``:
    the terms are added to what NF4 leaves of the tensor.
    """

    instead: Tensor | None = None
    terms: tuple[Term, ...] = ()
    spectral: SpectralTerm | None = None
    turned: bool = False
    bias: bool = False
    tokens: tuple[int, ...] = ()
    rows: Tensor | None = None
    nf4: bool = False

    @property
    def dora(self) -> bool:
        return not self.bias and any(term.delta.magnitude is not None for term in self.terms)

    @property
    def empty(self) -> bool:
        """Whether it leaves the tensor as it is, but for NF4."""
        return self.instead is None and not self.terms and self.spectral is None and self.rows is None
