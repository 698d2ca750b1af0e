"""The protocol that every kind of delta implements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

from adaptrix.architecture import Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex
from adaptrix.delta.spectrum import Matrix, Truncation
from adaptrix.errors import Problem
from adaptrix.tensor import Tensor

if TYPE_CHECKING:
    from adaptrix.delta.low_rank import LowRank


class Delta(Protocol):
    """One change ΔW ``[out, in]`` to one weight; a frozen value.

    A question that a kind has no answer to is refused with :class:`RefusedError` and the reason. What belongs to a
    higher floor (a file, a base's tensors, a live model) is not here: each floor has a table by :attr:`kind`.
    """

    #: what spans ΔW's rows and its columns, as messages name it: ("rows of B (out)", "columns of A (in)")
    axes: ClassVar[tuple[str, str]]
    #: whether it is a change of one very weight of a base, which that weight is checked against before it acts
    needs_base: ClassVar[bool]

    @property
    def kind(self) -> str:
        """Its name in files and in messages, one of :data:`adaptrix.delta.kinds.KINDS`."""

    @property
    def rank(self) -> int:
        """The number of its terms or numbers, at least 1; of one expert where several are stacked."""

    @property
    def scale(self) -> float:
        """The factor that its tensors leave out: ΔW = scale · (what they say)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW, of one expert where several are stacked; 0 for a side that its tensors do not say."""

    @property
    def experts(self) -> int | None:
        """The number of experts stacked in it; None for a delta of one weight."""

    @property
    def resolved(self) -> bool:
        """True where nothing has to be computed from a base, or all of that is here."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Every tensor, by its name in an injection file."""

    def energy_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that ‖ΔW‖² is computed from: it is finite only where they are."""

    def energy(self) -> float:
        """‖ΔW‖²_F, without ΔW and without the base; not finite where one of :meth:`energy_tensors` is not."""

    def dense(self) -> Matrix:
        """ΔW itself in fp64, ``[out, in]`` or ``[experts, out, in]``: for tests and small weights."""

    def site_problems(self, site: Site, role: Role, dims: Dims, where: str) -> Iterator[Problem]:
        """The problems of it at a site other than its shape; ``where`` is the site's name in messages."""

    def of_rows(self, rows: RowIndex) -> Self:
        """The same change to some rows of the weight, such as those of a part of a fused one."""

    def multiplied(self, gain: float) -> Self:
        """gain·ΔW, without a rounding of its tensors."""

    def cast(self, dtype: str) -> Self:
        """Its trained tensors rounded to a dtype, as safetensors names it; Inf where a number is too large."""

    def compared(self) -> list[Matrix]:
        """The numbers in fp64 that a rounding error is measured on, in one order for one kind."""

    def lost(self, rank: int | None) -> Truncation:
        """The part of ΔW that a LoRA of at most ``rank`` lacks, without the base; None is a LoRA of any rank."""

    def smallest_rank(self, allowed: float) -> int:
        """The smallest rank of a LoRA that lacks at most this share of ‖ΔW‖."""

    def low_rank(self, rank: int | None = None) -> tuple[LowRank, Truncation]:
        """A LoRA of the same ΔW, exact or of at most ``rank``, and what it lacks, as measured."""

    def without_vectors(self) -> Self:
        """The same without what can be computed from the base again."""

    def is_transpose_of(self, other: Delta) -> bool:
        """True where ΔW is exactly the transpose of the other's, as of tied embeddings and heads."""
