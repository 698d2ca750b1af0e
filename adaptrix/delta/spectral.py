"""A change of a weight's singular values: singular-value fine-tuning (arXiv 2501.06252).

With W = U·diag(s)·Vᵀ the tuned weight is U·diag(s⊙z)·Vᵀ, so that ΔW = U·diag(d)·Vᵀ with d = s⊙(z−1). U and V are
those of the base: a delta either holds them, or names the base's tensor that they can be computed from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from adaptrix.architecture import Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex
from adaptrix.delta.low_rank import LowRank
from adaptrix.delta.spectrum import Matrix, Truncation, smallest_rank
from adaptrix.errors import Problem, refuse
from adaptrix.tensor import Tensor

if TYPE_CHECKING:
    from adaptrix.delta.protocol import Delta

_ROWS = 512  # of ΔW that are multiplied out at a time where an error is measured


@dataclass(frozen=True, slots=True)
class Basis:
    """The decomposition that the numbers of a spectral delta belong to.

    ``weight``: SHA-256 of the base tensor's bytes as stored, in its own ``dtype`` (as safetensors names it) and its
    own orientation. ``backend``: how it was decomposed, such as ``lapack-f32``.
    """

    weight: str
    dtype: str
    backend: str


@dataclass(frozen=True, slots=True, eq=False)
class Spectral:
    """ΔW = U·diag(s⊙(z−1))·Vᵀ, with k = min(out, in) singular values.

    ``z`` and ``S`` are ``[k]``; S, in fp32, is always there, so that norms, plans and errors need no base.
    ``shape`` is (out, in). ``U`` ``[out, k]`` and ``Vt`` ``[k, in]``, in fp32, are a cache: both or neither.
    """

    z: Tensor
    S: Tensor
    basis: Basis
    shape: tuple[int, int]
    U: Tensor | None = None
    Vt: Tensor | None = None

    axes: ClassVar[tuple[str, str]] = ("rows of U (out)", "columns of Vᵀ (in)")
    needs_base: ClassVar[bool] = True
    experts: ClassVar[int | None] = None

    @property
    def kind(self) -> str:
        """Its name in an injection file."""
        return "spectral"

    @property
    def rank(self) -> int:
        """The number of singular values, k."""
        return self.z.shape[0]

    @property
    def scale(self) -> float:
        return 1.0

    @property
    def resolved(self) -> bool:
        """True where it holds U and V."""
        return self.U is not None and self.Vt is not None

    @property
    def d(self) -> NDArray[np.float64]:
        """s⊙(z−1) ``[k]``: ΔW in the basis of W's singular vectors."""
        return self.S.float64() * (self.z.float64() - 1.0)

    def energy(self) -> float:
        """‖ΔW‖²_F = Σd². Not finite where z or S is not."""
        d = self.d
        return float(d @ d)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in an injection file."""
        named = {"spectral_z": self.z, "spectral_S": self.S, "spectral_U": self.U, "spectral_Vt": self.Vt}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def energy_tensors(self) -> tuple[Tensor, ...]:
        """Its z and S."""
        return self.z, self.S

    def compared(self) -> list[Matrix]:
        """Its d alone, for z is always near 1."""
        return [self.d]

    def vectors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(U ``[out, k]``, Vᵀ ``[k, in]``). Raises :class:`RefusedError` where it does not hold them."""
        if self.U is None or self.Vt is None:
            found, remedy = (
                "its singular vectors are missing",
                "Name the base it was trained on with --base MODEL.",
            )
            raise refuse("base-needed", "spectral delta", found, "U and V of the base's weight", remedy)
        return self.U.float32(), self.Vt.float32()

    def dense(self) -> Matrix:
        """ΔW itself, ``[out, in]``: for tests and small weights. Raises as :meth:`vectors` does."""
        U, Vt = self.vectors()
        return np.asarray((U * self.d) @ Vt.astype(np.float64))

    def site_problems(self, site: Site, role: Role, dims: Dims, where: str) -> Iterator[Problem]:
        """A site that is not the whole matrix of a linear module: a decomposition is that of such a one."""
        if site.part is not None or role.orientation not in ("linear", "conv1d"):
            on = "a part of a weight" if site.part else "stacked experts or tokens"
            yield Problem(
                "kind-unsupported", where, f"a spectral delta on {on}", "one on the whole weight of a linear module"
            )

    def of_rows(self, rows: RowIndex) -> Spectral:
        """Always raises :class:`RefusedError`: some rows of a weight have other singular values and vectors."""
        found = f"{len(rows)} of {self.shape[0]} rows are wanted, which have another decomposition"
        raise refuse(
            "kind-unsupported", "spectral delta", found, "the whole weight", "Make a LoRA of it with --to peft."
        )

    def cast(self, dtype: str) -> Spectral:
        """Its z rounded to ``dtype``; S, U and V are the base's and stay as they are."""
        return replace(self, z=self.z.cast(dtype))

    def is_transpose_of(self, other: Delta) -> bool:
        """False: decompositions of two weights are not compared."""
        return False

    def without_vectors(self) -> Spectral:
        """The same delta without its cache of U and V."""
        return replace(self, U=None, Vt=None)

    def multiplied(self, gain: float) -> Spectral:
        """gain·ΔW, which is z' = 1 + gain·(z − 1), in fp64 unless the gain is 1: nothing is rounded."""
        return self if gain == 1.0 else replace(self, z=Tensor.of(1.0 + gain * (self.z.float64() - 1.0)))

    def lost(self, rank: int | None) -> Truncation:
        """The error of the best approximation of at most ``rank``: √Σd² over all but the ``rank`` largest |d|.

        Exact as far as U and V are orthonormal (Eckart–Young); nothing where ``rank`` is None.
        """
        return Truncation.of(np.abs(self.d), rank)

    def smallest_rank(self, allowed: float) -> int:
        """The smallest rank whose relative error is allowed."""
        return smallest_rank(np.abs(self.d), allowed)

    def low_rank(self, rank: int | None = None) -> tuple[LowRank, Truncation]:
        """A LoRA of the same ΔW, in fp32, and what it lacks, as measured.

        A = diag(√|d|)·Vᵀ and B = U·diag(sign(d)·√|d|): for ``rank`` None of every d that is not zero, which is exact
        but for rounding, else of the ``rank`` largest |d| (not the largest singular values). ΔW = 0 has rank 1 there.
        Raises :class:`RefusedError` where it does not hold U and V.
        """
        U, Vt = self.vectors()
        d = self.d
        kept = np.argsort(-np.abs(d), kind="stable")[: max(1, np.count_nonzero(d))][:rank]
        kept.sort()  # in the order of the singular values
        root = np.sqrt(np.abs(d[kept]))
        A = (root[:, None] * Vt[kept]).astype(np.float32)
        B = (U[:, kept] * (np.sign(d[kept]) * root)).astype(np.float32)
        found = LowRank(Tensor.of(A), Tensor.of(B), alpha=float(len(kept)))
        return found, self._measured(A, B)

    def _measured(self, A: NDArray[np.float32], B: NDArray[np.float32]) -> Truncation:
        """The error of B·A beside ΔW, multiplied out a few rows at a time."""
        lost = wanted = 0.0
        for whole, gap in self._rows(A, B):
            lost += float(np.vdot(gap, gap))
            wanted += float(np.vdot(whole, whole))
        return Truncation(sqrt(lost), sqrt(wanted))

    def _rows(self, A: NDArray[np.float32], B: NDArray[np.float32]) -> Iterator[tuple[Matrix, Matrix]]:
        """Some rows of ΔW, and of ΔW − B·A, in fp64."""
        U, Vt = self.vectors()
        right, A64, d = Vt.astype(np.float64), A.astype(np.float64), self.d
        for start in range(0, len(U), _ROWS):
            whole = (U[start : start + _ROWS] * d) @ right
            yield whole, whole - B[start : start + _ROWS].astype(np.float64) @ A64
