"""What is to happen to one tensor of a base. Values only; :mod:`adaptrix.merging.product` does the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from adaptrix.architecture import Site
from adaptrix.base.sites import Term
from adaptrix.delta import Spectral
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SpectralTerm:
    """What a spectral delta, with its U and V, adds to the weight that it is of; ``gain`` multiplies it."""

    site: Site
    delta: Spectral
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class TensorChange:
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
