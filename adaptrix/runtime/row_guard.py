"""A check before a batch is divided: dimension 0 of what enters a module has to be the rows of the batch.

Images, sound, the tokens that a router sends to an expert, and tokens put before the rows are no rows, even where
their number is one that could be divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime import recompute
from adaptrix.runtime.batch import GUIDED, Batch
from adaptrix.runtime.kernel import ActiveKernel
from adaptrix.runtime.places import Place

_REMEDY = "Run the rows one by one under session.use, or attach with layers=… that leave the module out."


@dataclass(frozen=True, slots=True, eq=False)
class Guarded:
    """A kernel of ``count`` rows that is applied to nothing but rows. ``batch``: that of the pass of this moment."""

    kernel: ActiveKernel
    place: Place
    count: int
    batch: Callable[[], Batch | None]

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return self.kernel.embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y``. Raises :class:`UsageError` for an input that is not divided into rows."""
        self._require(x)
        return self.kernel.delta(x, y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row's change added. Raises :class:`UsageError` as :meth:`delta` does."""
        self._require(x)
        return self.kernel.add(x, y)

    def _require(self, x: Tensor) -> None:
        if recompute.in_backward():  # the forward pass has been through here
            return
        batch, embedding = self.batch(), self.kernel.embedding
        doubts = _doubts(self.place, x, embedding, batch) if batch else _alone(self.place, x, embedding, self.count)
        require_none(self.place, doubts)


def require_none(place: Place, doubts: Iterator[str]) -> None:
    """Raises :class:`UsageError` with the first reason why a module's input cannot be divided."""
    if found := next(doubts, None):
        raise UsageError(Problem("route", place.name, found, "one adapter a row", _REMEDY))


def in_graph(place: Place, x: Tensor, embedding: bool) -> Iterator[str]:
    """The reasons that a compiled graph can know, or a module that is called outside of a pass of its model."""
    if place.tower:
        yield _TOWER
    elif place.tokens_first or _by_token(x, embedding) < 2 or (embedding and not place.tokens):
        yield f"its input {list(x.shape)} does not show which row a token is of"


def _doubts(place: Place, x: Tensor, embedding: bool, batch: Batch) -> Iterator[str]:
    """Reasons why dimension 0 of ``x`` is not the rows of the pass, or those of its tokens in the rows' order."""
    size, shape, flat = len(x), list(x.shape), _by_token(x, embedding) < 2
    if place.tower:
        if flat or size != batch.images:
            yield _TOWER
    elif flat:
        known = {batch.rows, *(batch.rows * length for length in batch.lengths)}
        if place.chosen or place.tokens_first or embedding or size not in known:
            yield f"its input {shape} does not show which row a token is of, as where a router has sent tokens here"
    elif size != batch.rows:
        yield f"dimension 0 of its input {shape} is not the {batch.rows} rows of the batch"
    elif size in batch.lengths and (place.tokens_first or (embedding and not place.tokens)):
        yield f"dimension 0 of its input {shape} may be tokens as well as rows"


def _alone(place: Place, x: Tensor, embedding: bool, count: int) -> Iterator[str]:
    """The same outside of a pass, when nothing but the shape is known."""
    yield from in_graph(place, x, embedding)
    if place.model_type in GUIDED and len(x) != count:
        yield f"a batch of {len(x)} for {count} adapters, which guidance may have joined from two"


def _by_token(x: Tensor, embedding: bool) -> int:
    """The number of dimensions that count rows and tokens."""
    return x.dim() if embedding else x.dim() - 1


_TOWER = "it is fed images or sound, and which row each is of is not known"
