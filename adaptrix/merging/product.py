"""The arithmetic of a merge, a piece of rows at a time.

W' = round(W + scale · B·A), the sum in fp32 (fp64 for a base in fp64) and rounded once, as peft computes it
unless it rounds ΔW first; a spectral delta has B = U·diag(d), A = Vᵀ. DoRA: round(m / ‖W + ΔW‖ · (W + ΔW)),
with norms by rows of ``[out, in]``. The product of a piece equals that part of the whole product: pieces do not
split the sums over the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import frexp

import torch
from torch import Tensor

from adaptrix.base.sites import Term
from adaptrix.errors import RefusedError, refuse
from adaptrix.merging.reading import Reader, reading
from adaptrix.merging.tensor_change import ScaleTerm, SpectralTerm, TensorChange
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import TORCH, as_torch

#: numbers a piece: they stay in a core's own cache
PIECE = 1 << 17
#: rows a piece at least: libraries multiply very few rows in another order, which changes the last bit
ROWS = 64
_WIDE = ("F64", "F32", "BF16")


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    """ΔW = scale · B·A of one matrix: A ``[r, in]``, B ``[out, r]``; ``magnitude`` ``[out]`` of DoRA."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None


def pieces(
    stored: Stored, change: TensorChange, dtype: str, where: str, *, allow_nonfinite: bool = False
) -> Iterator[memoryview]:
    """The bytes of the new tensor, in order and in ``dtype``; each is void when the next is asked for.

    Raises :class:`RefusedError` for a number that is not finite, unless ``allow_nonfinite``.
    """
    source = change.instead or stored
    if not source.size:
        return
    if change.nf4:
        from adaptrix.merging.qlora import dequantised

        source = dequantised(source, turned=change.turned)
    wide = torch.float64 if stored.dtype == "F64" else torch.float32
    rounded = _Rounding(TORCH[dtype])
    for x in _vector(source, change, wide) if len(source.shape) < 2 else _matrices(source, change, wide):
        yield rounded(x)
        if not (allow_nonfinite or rounded.finite):
            raise _not_finite(source, change, dtype, where)


class _Rounding:
    """Rounds pieces into one buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._room, self._bytes = torch.empty(0, dtype=dtype), memoryview(b"")

    def __call__(self, x: Tensor) -> memoryview:
        if self._room.shape != x.shape:
            self._room = torch.empty(x.shape, dtype=self._dtype)
            self._bytes = self._room.view(-1).view(torch.uint8).numpy().data
        self._room.copy_(x)
        return self._bytes

    @property
    def finite(self) -> bool:
        """True where every number of the last piece is finite: both extremes are NaN where any number is."""
        room = self._room.float() if self._dtype.itemsize == 1 else self._room
        return not room.numel() or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(room))


def _not_finite(source: Stored, change: TensorChange, dtype: str, where: str) -> RefusedError:
    """The refusal of a tensor with Inf or NaN, with what they come from: the base, rounding, or ΔW."""
    expected = "finite numbers"
    if not bool(torch.isfinite(as_torch(source).float()).all()):
        remedy = "Fetch the base again, or let such numbers through with --allow-nonfinite."
        return refuse("nonfinite", where, "the base's own tensor has Inf or NaN", expected, remedy)
    if dtype not in _WIDE:
        found, remedy = f"a merged number is beyond what {dtype} holds", "Merge with --dtype bf16 or fp32."
        return refuse("overflow", where, found, expected, remedy)
    scales = ", ".join(sorted({f"{term.scale:g}" for term in change.terms})) or "1"
    found = f"a merged number is beyond what {dtype} holds: the adapter's scale is {scales}"
    remedy = "Its alpha or its factors are damaged: fetch the adapter again, or train it anew."
    return refuse("overflow", where, found, expected, remedy)


def _vector(source: Stored, change: TensorChange, wide: torch.dtype) -> Iterator[Tensor]:
    """A bias, or any tensor without rows: b + scale · B.bias."""
    x = as_torch(source).to(wide)
    for term in change.terms:
        assert term.delta.bias is not None  # these are the terms of a bias
        added = as_torch(term.delta.bias).to(wide)
        added = added if term.taken is None else added[torch.from_numpy(term.taken)]
        index = slice(None) if term.put is None else torch.from_numpy(term.put)
        x[index] += added * term.scale
    if change.scaled is not None:
        x *= _multipliers(change.scaled, wide)
    yield x


def _matrices(source: Stored, change: TensorChange, wide: torch.dtype) -> Iterator[Tensor]:
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
    source: Stored, change: TensorChange, terms: Sequence[Term], expert: int | None, wide: torch.dtype
) -> Iterator[Tensor]:
    """The pieces of one stored matrix ``[rows, columns]``."""
    rows, columns = source.shape
    if change.spectral is not None:
        factors: _Factors | None = _spectral_factors(change.spectral, wide)
    else:
        factors = _factors(terms, columns if change.turned else rows, expert, wide) if terms else None
    whole = change.turned and factors is not None and factors.magnitude is not None  # each norm runs through all rows
    count = max(1, rows // max(ROWS, PIECE // max(1, columns)))
    part = -(-rows // count)
    room = torch.empty(rows if whole else part, columns, dtype=wide)
    with reading(source, part, wide) as read:
        for start, stop in [(0, rows)] if whole else pairwise(rows * piece // count for piece in range(count + 1)):
            x = room if stop - start == len(room) else room[: stop - start]
            if change.scaled is not None:
                _scale(x.copy_(read(start, stop)), change.scaled, start, stop, turned=change.turned)
            elif factors is None:
                x.copy_(read(start, stop))
            else:
                _product(factors, start, stop, turned=change.turned, out=x)
                _add(x, read, start, part)
                if factors.magnitude is not None:
                    _norm(x, factors.magnitude, start, stop, turned=change.turned)
            if change.rows is not None:
                _put_tokens(x, change, change.rows, start)
            yield x


def _product(factors: _Factors, start: int, stop: int, *, turned: bool, out: Tensor) -> None:
    """ΔW for the stored rows from ``start`` to ``stop``; scaled last, as peft does."""
    if turned:
        torch.mm(factors.A[:, start:stop].T, factors.B.T, out=out)
    else:
        torch.mm(factors.B[start:stop], factors.A, out=out)
    if factors.scale != 1.0:
        out.mul_(factors.scale)


def _add(x: Tensor, read: Reader, start: int, part: int) -> None:
    """Adds W to ΔW in ``x``, in parts where x is the whole weight, so that no second copy of W is made."""
    if len(x) <= part:
        x.add_(read(start, start + len(x)))
        return
    for row in range(0, len(x), part):
        there = x[row : row + part]
        there.add_(read(start + row, start + row + len(there)))


def _norm(x: Tensor, magnitude: Tensor, start: int, stop: int, *, turned: bool) -> None:
    """Scales the rows of ``[out, in]`` to DoRA's magnitudes."""
    if turned:
        x.mul_(magnitude / torch.linalg.norm(x.T, dim=1))
    else:
        x.mul_((magnitude[start:stop] / torch.linalg.norm(x, dim=1))[:, None])


def _scale(x: Tensor, term: ScaleTerm, start: int, stop: int, *, turned: bool) -> None:
    """Multiplies the columns of the stored matrix, or its rows from ``start`` to ``stop``."""
    by = _multipliers(term, x.dtype)
    x.mul_(by if term.delta.inputs is not turned else by[start:stop, None])


def _multipliers(term: ScaleTerm, wide: torch.dtype) -> Tensor:
    """The numbers 1 + gain·(l − 1)."""
    return torch.from_numpy(1.0 + term.gain * term.delta.change).to(wide)


def _put_tokens(x: Tensor, change: TensorChange, rows: Stored, start: int) -> None:
    """Replaces the rows of trained tokens."""
    here = [(number, token - start) for number, token in enumerate(change.tokens) if 0 <= token - start < len(x)]
    trained = as_torch(rows).to(x.dtype) if here else x
    for number, row in here:
        x[row] = trained[number]


def _spectral_factors(term: SpectralTerm, wide: torch.dtype) -> _Factors:
    """Vᵀ ``[k, in]`` and U·diag(gain · d) ``[out, k]``, in the memory that they were read into."""
    assert term.delta.U is not None and term.delta.Vt is not None  # noqa: PT018  # it is resolved
    d = torch.from_numpy(term.delta.d * term.gain).to(wide)
    return _Factors(as_torch(term.delta.Vt, dtype=wide), as_torch(term.delta.U, dtype=wide).mul_(d), 1.0)


def _factors(terms: Sequence[Term], out: int, expert: int | None, wide: torch.dtype) -> _Factors:
    """The factors of the sum of all terms: side by side where there are several, scales in B where these differ."""
    pairs = [_pair(term, out, expert, wide) for term in terms]
    if len(terms) == 1:
        delta, (A, B) = terms[0].delta, pairs[0]
        magnitude = None if delta.magnitude is None else as_torch(delta.magnitude).to(wide)
        if magnitude is not None and terms[0].taken is not None:
            magnitude = magnitude[torch.from_numpy(terms[0].taken)]
        return _scaled(_Factors(A, B, terms[0].scale, magnitude))
    alike = len({term.scale for term in terms}) == 1
    Bs = [B if alike else B * term.scale for term, (_, B) in zip(terms, pairs, strict=True)]
    A = torch.cat([A for A, _ in pairs])
    return _scaled(_Factors(A, torch.cat(Bs, dim=1), terms[0].scale if alike else 1.0))


def _scaled(factors: _Factors) -> _Factors:
    """The factors with a scale that is a power of two in B: nothing is rounded, and the product needs no scaling."""
    if frexp(factors.scale)[0] != 0.5:
        return factors
    return replace(factors, B=factors.B * factors.scale, scale=1.0)


def _pair(term: Term, out: int, expert: int | None, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]`` of a term, B's rows where they go in the weight."""
    delta = term.low_rank
    A, B = as_torch(delta.A).to(wide), as_torch(delta.B).to(wide)
    if delta.experts is not None:
        source = expert if term.source is None else term.source
        A = A.reshape(delta.experts, delta.rank, -1)[source]
        B = B.reshape(B.shape[0], delta.rank, delta.experts)[:, :, source].contiguous()
    if term.taken is not None:
        B = B[torch.from_numpy(term.taken)]
    if term.put is not None:
        whole = B.new_zeros(out, B.shape[1])
        whole[torch.from_numpy(term.put)] = B
        B = whole
    return A, B
