"""The product of two thin factors as a change to a weight, and what can be computed from them without multiplying.

ΔW is always ``[out, in]``, independent of the module's own layout. A factorisation is never multiplied
out: norms come from the r×r Gram matrices (‖BA‖²_F = tr((BᵀB)(AAᵀ))), truncation from the QR of the
factors and the SVD of a small core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from adaptrix.architecture import Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex
from adaptrix.delta.spectrum import Matrix, Spectrum, Truncation, norm, smallest_rank, spectrum
from adaptrix.errors import Problem, refuse
from adaptrix.tensor import Tensor

if TYPE_CHECKING:
    from adaptrix.delta.protocol import Delta

_SLICE = 1024  # columns whose fp64 copy stays in the cache


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """ΔW = scale · B·A with A ``[r, in]``, B ``[out, r]``.

    ``scale`` is alpha/r, or alpha/√r under rsLoRA; ``alpha`` and ``rslora`` say how it came about.
    ``bias``: ``lora_B.bias`` ``[out]``, scaled like ΔW. ``magnitude``: DoRA's ``[out]``, under which the
    weight becomes magnitude · (W + ΔW) / ‖W + ΔW‖ by rows. ``experts``: A ``[E·r, in]`` holds E experts
    one after another and B ``[out, r·E]`` holds them fastest, as PEFT's ``target_parameters`` writes
    them; ``transposed`` then says that the pair describes ΔWᵀ, as PEFT before 0.19 wrote it.
    """

    A: Tensor
    B: Tensor
    alpha: float
    rslora: bool = False
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    embedding: bool = False
    experts: int | None = None
    transposed: bool = False

    axes: ClassVar[tuple[str, str]] = ("rows of B (out)", "columns of A (in)")
    needs_base: ClassVar[bool] = False
    resolved: ClassVar[bool] = True

    @property
    def kind(self) -> str:
        """Its name in an injection file."""
        return "lora" if self.magnitude is None else "dora"

    @property
    def rank(self) -> int:
        """The rank r (of one expert, where several are stacked)."""
        return self.A.shape[0] // (self.experts or 1)

    @property
    def scale(self) -> float:
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        out, inp = self.B.shape[0], self.A.shape[1]
        return (inp, out) if self.transposed else (out, inp)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in an injection file."""
        named = {"lora_A": self.A, "lora_B": self.B, "lora_B.bias": self.bias, "magnitude": self.magnitude}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def energy_tensors(self) -> tuple[Tensor, ...]:
        """A and B."""
        return self.A, self.B

    def compared(self) -> list[Matrix]:
        """Its tensors themselves."""
        return [tensor.float64() for tensor in self.tensors().values()]

    def factors(self) -> list[tuple[Matrix, Matrix]]:
        """(A, B) in fp64 of each expert; a single pair where nothing is stacked."""
        A, B = self.A.float64(), self.B.float64()
        if self.experts is None:
            return [(A, B)]
        stacked_A = A.reshape(self.experts, self.rank, -1)
        stacked_B = B.reshape(B.shape[0], self.rank, self.experts).transpose(2, 0, 1)
        return list(zip(stacked_A, stacked_B, strict=True))

    def energy(self) -> float:
        """‖ΔW‖²_F (of B·A alone: what DoRA's magnitude does depends on the base).

        Accumulated in fp64 from slices, so that no fp64 copy of a factor is made, and of what is smaller:
        the r×r Gram matrices, or ΔW itself where the rank exceeds both its sides. Not finite exactly where
        a factor is not.
        """
        rank, experts = self.rank, self.experts or 1
        A = self.A.float32() if self.A.dtype != "F64" else self.A.numpy()
        B = self.B.float32() if self.B.dtype != "F64" else self.B.numpy()
        by_expert = zip(A.reshape(experts, rank, -1), B.reshape(-1, rank, experts).transpose(2, 1, 0), strict=True)
        return self.scale**2 * sum(_energy(a, b) for a, b in by_expert)

    def dense(self) -> Matrix:
        """ΔW itself, ``[out, in]`` or ``[experts, out, in]``: for tests and small weights."""
        pairs = [self.scale * (B @ A) for A, B in self.factors()]
        turned = [pair.T if self.transposed else pair for pair in pairs]
        return turned[0] if self.experts is None else np.stack(turned)

    def site_problems(self, site: Site, role: Role, dims: Dims, where: str) -> Iterator[Problem]:
        """Another number of experts than the family states, and vectors that are not as long as ΔW has rows."""
        experts = dims.get(role.experts) if role.experts else None
        if self.experts and experts and self.experts != experts:
            yield Problem("shape", where, f"{self.experts} experts", f"{experts}")
        for name, tensor in (("magnitude", self.magnitude), ("lora_B.bias", self.bias)):
            if tensor is not None and tensor.shape != (self.shape[0],):
                yield Problem("shape", f"{site} {name}", f"shape {list(tensor.shape)}", f"[{self.shape[0]}]")

    def of_rows(self, rows: RowIndex) -> LowRank:
        """The same A, and some rows of B and of what goes with them."""
        return self._with(lambda name, tensor: tensor if name == "A" else Tensor.of(tensor.numpy()[rows]))

    def cast(self, dtype: str) -> LowRank:
        """Every tensor rounded to ``dtype``."""
        return self._with(lambda _, tensor: tensor.cast(dtype))

    def _with(self, change: Callable[[str, Tensor], Tensor]) -> LowRank:
        """The same with other tensors: ``change`` makes each of its field's name and the one it has."""
        found = {"A": self.A, "B": self.B, "bias": self.bias, "magnitude": self.magnitude}
        return replace(self, **{name: change(name, old) for name, old in found.items() if old is not None})  # type: ignore[arg-type]  # its own fields

    def multiplied(self, gain: float) -> LowRank:
        """gain·ΔW, by its alpha; a magnitude stays as it is."""
        return replace(self, alpha=self.alpha * gain)

    def without_vectors(self) -> LowRank:
        """Itself: nothing in it is the base's."""
        return self

    def lost(self, rank: int | None) -> Truncation:
        """The loss of the best approximation of at most ``rank``. Raises :class:`RefusedError` as :meth:`low_rank`."""
        if rank is None or rank >= self.rank:
            return Truncation(0.0, sqrt(self.energy()))
        return Truncation.of(self._spectrum().values * abs(self.scale), rank)

    def smallest_rank(self, allowed: float) -> int:
        """The smallest rank whose relative error is allowed. Raises :class:`RefusedError` as :meth:`low_rank`."""
        return smallest_rank(self._spectrum().values, allowed)

    def low_rank(self, rank: int | None = None) -> tuple[LowRank, Truncation]:
        """Itself where its rank is small enough, else the best one of ``rank`` in its own dtype; and what it lacks.

        Raises :class:`RefusedError` for DoRA and stacked experts, which no smaller pair of factors approximates.
        """
        if rank is None or rank >= self.rank:
            return self, self.lost(rank)
        A, B = self._spectrum().factors(rank)
        made = replace(self, A=Tensor.of(A).cast(self.A.dtype), B=Tensor.of(B).cast(self.B.dtype))
        made = replace(made, alpha=self.scale * made.rank, rslora=False)
        wanted_A, wanted_B = stack([self])
        size = norm(wanted_A, wanted_B)
        return made, Truncation(distance(made, wanted_A, wanted_B) * (size or 1.0), size)

    def is_transpose_of(self, other: Delta) -> bool:
        """True where each one's A equals the other's Bᵀ exactly; False with biases or magnitudes."""
        if not isinstance(other, LowRank) or self.scale != other.scale:
            return False
        if self.magnitude or other.magnitude or self.bias or other.bias:
            return False
        crossed = ((self.A, other.B), (self.B, other.A))
        return all(np.array_equal(one.float32().T, two.float32()) for one, two in crossed)

    def _spectrum(self) -> Spectrum:
        """The decomposition of B·A, the scale left out. Raises :class:`RefusedError` where there is not one of it."""
        if self.magnitude is not None or self.experts is not None:
            found = "DoRA" if self.magnitude is not None else "stacked experts"
            raise refuse("kind-unsupported", self.kind, f"{found}: no product of one pair of factors", "a plain LoRA")
        return spectrum(self.A.float64(), self.B.float64())


def from_factors(A: Matrix, B: Matrix, dtype: str) -> LowRank:
    """The delta B·A (scale 1) with its factors rounded to ``dtype``."""
    return LowRank(Tensor.of(A).cast(dtype), Tensor.of(B).cast(dtype), alpha=float(A.shape[0]))


def straightened(delta: LowRank) -> LowRank:
    """Stacked factors of ΔWᵀ as factors of ΔW, by moving numbers only: A'ₑ = Bₑᵀ, B'ₑ = Aₑᵀ."""
    if not delta.transposed or delta.experts is None:
        return delta
    A = delta.A.numpy().reshape(delta.experts, delta.rank, -1)
    B = delta.B.numpy().reshape(delta.B.shape[0], delta.rank, delta.experts)
    turned_A = B.transpose(2, 1, 0).reshape(delta.A.shape[0], -1)
    turned_B = A.transpose(2, 1, 0).reshape(A.shape[2], -1)
    return replace(delta, A=Tensor.of(turned_A), B=Tensor.of(turned_B), transposed=False)


def split(delta: LowRank, rows: Mapping[str, RowIndex]) -> dict[str, LowRank]:
    """The parts of a delta on a fused weight: each keeps A and takes its rows of B."""
    return {part: delta.of_rows(index) for part, index in rows.items()}


def fuse(parts: Mapping[str, LowRank], rows: Mapping[str, RowIndex]) -> LowRank:
    """One delta on a fused weight out of deltas on some of its parts, exact.

    A stacks the parts' A; B is zero but for each part's rows and its own rank columns. A part that is
    not there stays zero. All parts must have one scale and one dtype. Raises ``ValueError``.
    """
    scales = {delta.scale for delta in parts.values()}
    if len(scales) != 1 or len({(d.A.dtype, d.B.dtype) for d in parts.values()}) != 1:
        raise ValueError("parts of different scales or dtypes cannot share one delta")
    if any(d.bias or d.magnitude or d.experts for d in parts.values()):
        raise ValueError("parts with biases, magnitudes or experts cannot share one delta")
    first = next(iter(parts.values()))
    A = np.concatenate([delta.A.numpy() for delta in parts.values()])
    B = np.zeros((sum(map(len, rows.values())), A.shape[0]), first.B.numpy().dtype)
    column = 0
    for part, delta in parts.items():
        B[rows[part], column : column + delta.rank] = delta.B.numpy()
        column += delta.rank
    return LowRank(Tensor.of(A), Tensor.of(B), alpha=first.scale * A.shape[0])


def stack(deltas: Sequence[LowRank]) -> tuple[Matrix, Matrix]:
    """Factors (A, B) of the sum of deltas, scales folded into B: rank is the sum of ranks."""
    pairs = [(delta.scale, *_only(delta.factors())) for delta in deltas]
    A = np.concatenate([A for _, A, _ in pairs])
    B = np.concatenate([scale * B for scale, _, B in pairs], axis=1)
    return A, B


def distance(delta: LowRank, A: Matrix, B: Matrix) -> float:
    """‖ΔW − B·A‖_F / ‖B·A‖_F, from the factors alone; 0 where both are zero."""
    A1, B1 = stack([delta])
    wanted = norm(A, B)
    gap = norm(np.concatenate([A1, A]), np.concatenate([B1, -B], axis=1))
    return gap / wanted if wanted else gap


def _energy(a: NDArray[Any], b: NDArray[Any]) -> float:
    """‖bᵀ·a‖²_F of a ``[r, in]`` and b ``[r, out]``, without anything larger than the two."""
    wide = len(a) > max(a.shape[1], b.shape[1])
    if wide:
        product = _product(b.T, a.T)
        return float(np.vdot(product, product))
    return float(np.vdot(_product(b, b), _product(a, a)))


def _product(one: NDArray[Any], other: NDArray[Any]) -> Matrix:
    """One · otherᵀ in fp64, a slice of columns at a time."""
    total = np.zeros((len(one), len(other)))
    for start in range(0, one.shape[1], _SLICE):
        part = one[:, start : start + _SLICE].astype(np.float64)
        mate = part if other is one else other[:, start : start + _SLICE].astype(np.float64)
        total += part @ mate.T
    return total


def _only(pairs: list[tuple[Matrix, Matrix]]) -> tuple[Matrix, Matrix]:
    if len(pairs) != 1:
        raise ValueError("stacked experts cannot be summed into one delta")
    return pairs[0]
