"""The arithmetic of a merge, a piece of rows at a time.

W' = round(W + scale · B·A), the sum in fp32 (fp64 for a base in fp64) and rounded once, which is what peft does
wherever it does not round ΔW first. DoRA: round(m / ‖W + ΔW‖ · (W + ΔW)), with norms by rows of ``[out, in]``. A
piece's product is that of the whole weight: each number is a sum over the rank, and pieces split no such sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptrix.errors import refuse
from adaptrix.merging.change import Change, Term
from adaptrix.merging.reading import Reader, reading
from adaptrix.runtime.tensors import as_torch
from adaptrix.tensor import Tensor as Stored

#: numbers a piece: what is done to them is done in a core's own cache
PIECE = 1 << 18
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NARROW = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    """ΔW = scale · B·A of one matrix: A ``[r, in]``, B ``[out, r]``; ``magnitude`` ``[out]`` of DoRA."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None


def pieces(stored: Stored, change: Change, dtype: str, where: str) -> Iterator[memoryview]:
    """The bytes of the new tensor, in order and in ``dtype``; each is void when the next is asked for.

    Raises :class:`RefusedError` where rounding makes a number infinite.
    """
    source = change.instead or stored
    if not source.size:
        return
    wide = torch.float64 if stored.dtype == "F64" else torch.float32
    rounded = _Rounding(TORCH[dtype], where)
    for x in _vector(source, change, wide) if len(source.shape) < 2 else _matrices(source, change, wide):
        yield rounded(x)


class _Rounding:
    """Rounds pieces, into one buffer."""

    def __init__(self, dtype: torch.dtype, where: str) -> None:
        self._room, self._where = torch.empty(0, dtype=dtype), where

    def __call__(self, x: Tensor) -> memoryview:
        if self._room.numel() < x.numel():
            self._room = torch.empty(x.numel(), dtype=self._room.dtype)
        room = self._room[: x.numel()]
        room.copy_(x.reshape(-1))
        if room.dtype in _NARROW and not bool(torch.isfinite(room.float()).all()):
            found, remedy = f"a merged number is beyond what {room.dtype} holds", "Merge with --dtype bf16 or fp32."
            raise refuse("overflow", self._where, found, remedy=remedy)
        return room.view(torch.uint8).numpy().data


def _vector(source: Stored, change: Change, wide: torch.dtype) -> Iterator[Tensor]:
    """A bias, or whatever has no rows: b + scale · B.bias."""
    x = as_torch(source).to(wide)
    for term in change.terms:
        assert term.delta.bias is not None  # these are the terms of a bias
        added = as_torch(term.delta.bias).to(wide)
        added = added if term.taken is None else added[torch.from_numpy(term.taken)]
        index = slice(None) if term.put is None else torch.from_numpy(term.put)
        x[index] += added * term.scale
    yield x


def _matrices(source: Stored, change: Change, wide: torch.dtype) -> Iterator[Tensor]:
    """The pieces of a matrix, or of each of the matrices that a stack of experts holds."""
    if len(source.shape) != 3:
        flat = source.reshape(source.shape[0], source.size // max(1, source.shape[0]))
        yield from _matrix(flat, change, change.terms, None, wide)
        return
    for expert in range(source.shape[0]):
        terms = [term for term in change.terms if term.expert in (None, expert)]
        matrix = source.rows(expert, expert + 1).reshape(*source.shape[1:])
        yield from _matrix(matrix, change, terms, expert, wide)


def _matrix(
    source: Stored, change: Change, terms: Sequence[Term], expert: int | None, wide: torch.dtype
) -> Iterator[Tensor]:
    """The pieces of one stored matrix ``[rows, columns]``."""
    rows, columns = source.shape
    out = columns if change.turned else rows
    factors = _factors(terms, out, expert, wide) if terms else None
    whole = change.turned and factors is not None and factors.magnitude is not None  # each norm runs through all rows
    step = max(1, rows if whole else PIECE // max(1, columns))
    room = torch.empty(min(step, rows), columns, dtype=wide)
    with reading(source) as reader:
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            x = room[: stop - start]
            if factors is None:
                x.copy_(reader(start, stop, TORCH[source.dtype]))
            else:
                _product(factors, start, stop, turned=change.turned, out=x)
                _add(x, reader, start, TORCH[source.dtype])
                _normed(x, factors, start, stop, turned=change.turned)
            _put_tokens(x, change, start)
            yield x


def _product(factors: _Factors, start: int, stop: int, *, turned: bool, out: Tensor) -> None:
    """ΔW for the stored rows from ``start`` to ``stop``; scaled last, as peft does."""
    if turned:
        torch.mm(factors.A[:, start:stop].T, factors.B.T, out=out)
    else:
        torch.mm(factors.B[start:stop], factors.A, out=out)
    if factors.scale != 1.0:
        out.mul_(factors.scale)


def _add(x: Tensor, reader: Reader, start: int, dtype: torch.dtype) -> None:
    """W to ΔW, in pieces again where x is the whole weight: no second copy of it is made."""
    step = max(1, PIECE // max(1, x.shape[1]))
    for row in range(0, x.shape[0], step):
        part = x[row : row + step]
        part.add_(reader(start + row, start + row + len(part), dtype).to(x.dtype))


def _normed(x: Tensor, factors: _Factors, start: int, stop: int, *, turned: bool) -> None:
    """DoRA's magnitudes in place of the norms of the rows of ``[out, in]``."""
    if factors.magnitude is None:
        return
    if turned:
        x.mul_(factors.magnitude / torch.linalg.norm(x.T, dim=1))
    else:
        x.mul_((factors.magnitude[start:stop] / torch.linalg.norm(x, dim=1))[:, None])


def _put_tokens(x: Tensor, change: Change, start: int) -> None:
    """Rows that were trained on their own, in the place of those that are there."""
    if change.rows is None:
        return
    here = [(number, token - start) for number, token in enumerate(change.tokens) if 0 <= token - start < len(x)]
    trained = as_torch(change.rows).to(x.dtype) if here else x
    for number, row in here:
        x[row] = trained[number]


def _factors(terms: Sequence[Term], out: int, expert: int | None, wide: torch.dtype) -> _Factors:
    """The factors of what all terms add: side by side where there are several, scales in B where these differ."""
    pairs = [_pair(term, out, expert, wide) for term in terms]
    if len(terms) == 1:
        delta, (A, B) = terms[0].delta, pairs[0]
        magnitude = None if delta.magnitude is None else as_torch(delta.magnitude).to(wide)
        if magnitude is not None and terms[0].taken is not None:
            magnitude = magnitude[torch.from_numpy(terms[0].taken)]
        return _Factors(A, B, terms[0].scale, magnitude)
    alike = len({term.scale for term in terms}) == 1
    Bs = [B if alike else B * term.scale for term, (_, B) in zip(terms, pairs, strict=True)]
    A = torch.cat([A for A, _ in pairs])
    return _Factors(A, torch.cat(Bs, dim=1), terms[0].scale if alike else 1.0)


def _pair(term: Term, out: int, expert: int | None, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]`` of a term, B's rows where they go in the weight."""
    A, B = as_torch(term.delta.A).to(wide), as_torch(term.delta.B).to(wide)
    if term.delta.experts is not None:
        source = expert if term.source is None else term.source
        A = A.reshape(term.delta.experts, term.delta.rank, -1)[source]
        B = B.reshape(B.shape[0], term.delta.rank, term.delta.experts)[:, :, source].contiguous()
    if term.taken is not None:
        B = B[torch.from_numpy(term.taken)]
    if term.put is not None:
        whole = B.new_zeros(out, B.shape[1])
        whole[torch.from_numpy(term.put)] = B
        B = whole
    return A, B
