"""Deltas that are a LoRA in another parametrisation: fewer numbers, or otherwise arranged, that make ΔW by a formula.

Each keeps the tensors of its checkpoint, so that it can be written as it came. What computes takes the LoRA of the same
ΔW (:meth:`Parametrised.low_rank`), which is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan, prod, sqrt
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from adaptrix.architecture import Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex
from adaptrix.delta.adalora import ADALORA
from adaptrix.delta.c3a import C3A
from adaptrix.delta.delora import DELORA
from adaptrix.delta.fourierft import FOURIERFT
from adaptrix.delta.gralora import GRALORA
from adaptrix.delta.loha import LOHA
from adaptrix.delta.lokr import LOKR
from adaptrix.delta.low_rank import LowRank
from adaptrix.delta.miss import MISS
from adaptrix.delta.parametrisation import LARGEST, Parametrisation, by_identity
from adaptrix.delta.shira import SHIRA
from adaptrix.delta.spectrum import Matrix, Truncation, smallest_rank
from adaptrix.delta.vblora import VBLORA
from adaptrix.delta.vera import VERA
from adaptrix.errors import Problem, refuse
from adaptrix.tensor import FLOATS, INTEGERS, Tensor

if TYPE_CHECKING:
    from adaptrix.delta.protocol import Delta

#: every parametrisation by the kind of its deltas
PARAMETRISATIONS: Mapping[str, Parametrisation] = MappingProxyType(
    {
        "adalora": ADALORA,
        "loha": LOHA,
        "lokr": LOKR,
        "vera": VERA,
        "miss": MISS,
        "gralora": GRALORA,
        "c3a": C3A,
        "delora": DELORA,
        "vblora": VBLORA,
        "fourierft": FOURIERFT,
        "shira": SHIRA,
    }
)


@dataclass(frozen=True, eq=False)
class Parametrised:
    """ΔW = scale · (what the parametrisation ``kind`` makes of the tensors ``parts``), on a linear layer.

    ``parts``: the tensors of the checkpoint by the ends of their names. ``settings``: whole numbers that the formula
    needs beside them; before it is bound it may lack sizes of its layer. ``shared``: the tensors of all deltas of its
    adapter. They are sound: :func:`part_problems` finds nothing.
    """

    kind: str
    parts: Mapping[str, Tensor]
    scale: float
    settings: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    shared: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    axes: ClassVar[tuple[str, str]] = ("rows of ΔW (out)", "columns of ΔW (in)")
    needs_base: ClassVar[bool] = False
    resolved: ClassVar[bool] = True
    experts: ClassVar[int | None] = None
    bias: ClassVar[Tensor | None] = None
    magnitude: ClassVar[Tensor | None] = None
    embedding: ClassVar[bool] = False

    @property
    def _made(self) -> Parametrisation:
        return PARAMETRISATIONS[self.kind]

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in (*self.parts.items(), *self.shared.items())}

    @property
    def _arrays(self) -> dict[str, Matrix]:
        return {name: tensor.float64() for name, tensor in (*self.parts.items(), *self.shared.items())}

    @property
    def unsized(self) -> tuple[str, ...]:
        """The settings that it lacks: sizes of layers, which its tensors do not say."""
        return tuple(name for name in self._made.settings or () if name not in self.settings)

    def sized(self, **sizes: int) -> Parametrised:
        """The same with some of these settings, where it lacks them."""
        lacking = {name: size for name, size in sizes.items() if name in self.unsized}
        return replace(self, settings=MappingProxyType({**self.settings, **lacking})) if lacking else self

    @property
    def unshared(self) -> tuple[str, ...]:
        """The tensors of its adapter that it needs and lacks."""
        return () if self._made.drawn else tuple(name for name in self._made.shared if name not in self.shared)

    @property
    def misplaced(self) -> bool:
        """True where its whole numbers name a place that is not there."""
        return self._made.misplaced is not None and self._made.misplaced(self._arrays, self.settings)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW; 0 for a side that is not known before it is bound."""
        return self._made.shape(self._shapes, self.settings)

    @property
    def rank(self) -> int:
        """The rank of the LoRA that it is: the least of that of its factors and both sides of ΔW."""
        sides = [side for side in self.shape if side]
        return min((self._made.rank(self._shapes, self.settings), *sides))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint, by the names that they have in it."""
        return dict(self.parts)

    def energy_tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return tuple(self.parts.values())

    def compared(self) -> list[Matrix]:
        """Its tensors themselves."""
        return [tensor.float64() for tensor in self.parts.values()]

    @cached_property
    def _energy(self) -> float:
        if self._made.energy is not None:
            return self.scale**2 * self._made.energy(self._arrays, self.settings)
        return self._exact("F64").energy()

    def energy(self) -> float:
        """‖ΔW‖²_F, computed once. Not finite where a tensor is not, and where there is no ΔW: of a size that is not
        known, without tensors that it shares, or with numbers at places that are not there."""
        if self.unsized or self.unshared or self.misplaced:
            return nan
        with np.errstate(over="ignore", invalid="ignore"):
            return self._energy

    def dense(self) -> Matrix:
        """ΔW itself, ``[out, in]``: for tests and small weights."""
        if self._made.dense is not None:
            return self.scale * self._made.dense(self._arrays, self.settings)
        A, B = self._made.factors(self._arrays, self.settings)
        return self.scale * (B @ A)

    def site_problems(self, site: Site, role: Role, dims: Dims, where: str) -> Iterator[Problem]:
        """A site that is not the whole matrix of a linear module: peft has these on no other."""
        if site.part is not None or role.orientation not in ("linear", "conv1d"):
            on = "a part of a weight" if site.part else "an embedding or stacked experts"
            yield Problem("kind-unsupported", where, f"a {self.kind} delta on {on}", "one on a linear module")

    def of_rows(self, rows: RowIndex) -> Parametrised:
        """Always raises :class:`RefusedError`: some rows of ΔW have no such tensors of their own."""
        found = f"{len(rows)} of {self.shape[0]} rows are wanted"
        remedy = f"Make a LoRA of it with --to peft --rank {self.rank}."
        raise refuse("kind-unsupported", f"{self.kind} delta", found, "the whole weight", remedy)

    def multiplied(self, gain: float) -> Parametrised:
        """gain·ΔW, by its scale."""
        return replace(self, scale=self.scale * gain)

    def cast(self, dtype: str) -> Parametrised:
        """Every tensor of its own rounded to ``dtype``, but those of whole numbers."""
        whole = self._made.integers
        cast = {name: tensor if name in whole else tensor.cast(dtype) for name, tensor in self.parts.items()}
        return replace(self, parts=MappingProxyType(cast))

    def without_vectors(self) -> Parametrised:
        """Itself: nothing in it is the base's."""
        return self

    def is_transpose_of(self, other: Delta) -> bool:
        """False: it is on no embedding."""
        return False

    def lost(self, rank: int | None) -> Truncation:
        """The loss of the best approximation of at most ``rank``; none where it is as high as the LoRA's own."""
        if rank is None or rank >= self.rank:
            return Truncation(0.0, sqrt(self.energy()))
        return Truncation.of(self._values, rank)

    def smallest_rank(self, allowed: float) -> int:
        """The smallest rank whose relative error is allowed."""
        return smallest_rank(self._values, allowed)

    @cached_property
    def _values(self) -> Any:
        """The singular values of ΔW, which take the longest of all."""
        return np.linalg.svd(self.dense(), compute_uv=False)

    def low_rank(self, rank: int | None = None) -> tuple[LowRank, Truncation]:
        """The LoRA of the same ΔW, in fp32 unless a tensor is in fp64, or the best one of ``rank``; and what it lacks.

        Where the rank would be that of a dense weight, the shorter side's factor is the identity.
        """
        double = any(tensor.dtype == "F64" for tensor in self.parts.values())
        exact = self._exact("F64" if double else "F32")
        return (exact, self.lost(None)) if rank is None or rank >= self.rank else exact.low_rank(rank)

    def _exact(self, dtype: str) -> LowRank:
        out, inp = self.shape
        if self._made.rank(self._shapes, self.settings) <= min(out, inp):
            A, B = self._made.factors(self._arrays, self.settings)
        else:
            A, B = by_identity(self.dense() / (self.scale or 1.0))
        return LowRank(Tensor.of(A).cast(dtype), Tensor.of(B).cast(dtype), alpha=self.scale * len(A))


def part_problems(kind: str, parts: Mapping[str, Tensor], settings: Mapping[str, int], where: str) -> Iterator[Problem]:
    """The problems of tensors of which a delta of this kind would be made; ``where`` begins their names in messages."""
    made = PARAMETRISATIONS[kind]
    shapes = {name: tensor.shape for name, tensor in parts.items()}
    problems = [
        Problem("dtype", f"{where} {name}", tensor.dtype, f"one of {', '.join(fitting)}")
        for name, tensor in parts.items()
        if tensor.dtype not in (fitting := INTEGERS if name in made.integers else FLOATS)
    ]
    problems += made.faults(shapes, settings, where)
    yield from problems
    if not problems and prod(made.shape(shapes, settings)) > LARGEST:
        out, inp = made.shape(shapes, settings)
        yield Problem("shape", where, f"ΔW would be {out} × {inp}", "the size of a weight")
