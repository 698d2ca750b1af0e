"""Changes of one tensor of a base. Values only; :mod:`adaptrix.merging.product` does the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from adaptrix.architecture import Site
from adaptrix.base.sites import Term
from adaptrix.delta import Scale, Spectral
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SpectralTerm:
    """The term that a spectral delta, with its U and V, adds to its weight; ``gain`` multiplies it."""

    site: Site
    delta: Spectral
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class ScaleTerm:
    """The numbers that an (IA)³ delta multiplies the rows or columns of its weight by; ``gain`` multiplies l − 1."""

    site: Site
    delta: Scale
    gain: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class TensorChange:
    """The change of a tensor, in this order.

    - ``nf4``: the tensor is quantised to NF4 and dequantised first.
    - ``instead``: a tensor that replaces it.
    - ``terms``: added to it. ``bias``: they are biases of B.
    - ``spectral``: added to it; excludes ``instead``, ``terms`` and ``rows``.
    - ``scaled``: multiplies it; excludes the same.
    - ``tokens``, ``rows``: the rows of these tokens are replaced.
    - ``turned``: the weight is stored ``[in, out]`` (Conv1D, embeddings).
    """

    instead: Tensor | None = None
    terms: tuple[Term, ...] = ()
    spectral: SpectralTerm | None = None
    scaled: ScaleTerm | None = None
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
        """True where the tensor stays as it is, but for NF4."""
        added = self.instead is None and not self.terms and self.rows is None
        return added and self.spectral is None and self.scaled is None
