"""(IA)³ (arXiv 2205.05638): a weight whose rows or columns are multiplied by learned numbers.

W' = diag(l)·W, the bias of the layer multiplied too, or W' = W·diag(l) in feedforward layers; so ΔW = diag(l − 1)·W or
W·diag(l − 1), which only the base can say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from adaptrix.architecture import Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex
from adaptrix.delta.low_rank import LowRank
from adaptrix.delta.spectrum import Matrix, Truncation
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.tensor import Tensor

if TYPE_CHECKING:
    from adaptrix.delta.protocol import Delta


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """The numbers l of one layer: ``[out, 1]`` on its output, ``[1, in]`` on its input where ``inputs`` is set."""

    vector: Tensor
    inputs: bool

    axes: ClassVar[tuple[str, str]] = ("numbers of ia3_l (out)", "numbers of ia3_l (in)")
    needs_base: ClassVar[bool] = False
    resolved: ClassVar[bool] = True
    experts: ClassVar[int | None] = None
    kind: ClassVar[str] = "scale"
    scale: ClassVar[float] = 1.0

    @property
    def rank(self) -> int:
        """The count of its numbers."""
        return self.vector.size

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of which it knows one; the other is 0."""
        return (0, self.rank) if self.inputs else (self.rank, 0)

    @property
    def change(self) -> Matrix:
        """The numbers l − 1, in fp64, ``[out]`` or ``[in]``."""
        return self.vector.float64().reshape(-1) - 1.0

    def tensors(self) -> dict[str, Tensor]:
        """The vector, by peft's name."""
        return {"ia3_l": self.vector}

    def energy_tensors(self) -> tuple[Tensor, ...]:
        """The vector."""
        return (self.vector,)

    def energy(self) -> float:
        """‖l − 1‖², which is ‖ΔW‖²_F where the rows, or columns, of W have norm 1. Not finite where l is not."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(self.change @ self.change)

    def compared(self) -> list[Matrix]:
        """The numbers l − 1, for l is always near 1."""
        return [self.change]

    def dense(self) -> Matrix:
        """Always raises :class:`RefusedError`: ΔW is a product with the base's weight."""
        raise self._of_full_rank()

    def site_problems(self, site: Site, role: Role, dims: Dims, where: str) -> Iterator[Problem]:
        """A site that is not the whole matrix of a linear module."""
        if site.part is not None or role.orientation not in ("linear", "conv1d"):
            on = "a part of a weight" if site.part else "an embedding or stacked experts"
            yield Problem("kind-unsupported", where, f"(IA)³ numbers on {on}", "those of a linear module")

    def of_rows(self, rows: RowIndex) -> Scale:
        """The numbers of some rows; all of them where they are on the input."""
        return self if self.inputs else replace(self, vector=Tensor.of(self.vector.numpy()[rows]))

    def multiplied(self, gain: float) -> Scale:
        """gain·ΔW, which is l' = 1 + gain·(l − 1), in fp64 unless the gain is 1: nothing is rounded."""
        if gain == 1.0:
            return self
        return replace(self, vector=Tensor.of((1.0 + gain * self.change).reshape(self.vector.shape)))

    def cast(self, dtype: str) -> Scale:
        """The numbers rounded to ``dtype``."""
        return replace(self, vector=self.vector.cast(dtype))

    def without_vectors(self) -> Scale:
        """Itself: nothing in it is the base's."""
        return self

    def is_transpose_of(self, other: Delta) -> bool:
        """False: it is on no embedding."""
        return False

    def lost(self, rank: int | None) -> Truncation:
        """Always raises :class:`RefusedError`, as :meth:`low_rank`."""
        raise self._of_full_rank()

    def smallest_rank(self, allowed: float) -> int:
        """Always raises :class:`RefusedError`, as :meth:`low_rank`."""
        raise self._of_full_rank()

    def low_rank(self, rank: int | None = None) -> tuple[LowRank, Truncation]:
        """Always raises :class:`RefusedError`: ΔW has the rank of the base's weight."""
        raise self._of_full_rank()

    def _of_full_rank(self) -> RefusedError:
        found = "it multiplies the base's weight, so that ΔW has the rank of that"
        remedy = "Merge it with `adaptrix merge`, and `adaptrix extract` a LoRA from the result."
        return refuse("kind-unsupported", "(IA)³ delta", found, "a LoRA", remedy)
