"""Folding of what a file format does not carry into what it does.

Ranks are padded with zeros, an rsLoRA's alpha is stated for alpha/r, and where a format has one scale or one alpha for
all, the rest of a delta's own scale goes into its B: exactly where every product is a number of B's dtype, else, of
fp32 and fp64 alone, rounded; a note says which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import inf, isfinite, nextafter, sqrt
from types import MappingProxyType

import numpy as np

from adaptrix.delta import LowRank, of_class
from adaptrix.errors import Problem
from adaptrix.planning.features import alpha_of, needed
from adaptrix.planning.lowering import exchanged
from adaptrix.planning.plan import Plan
from adaptrix.tensor import Array, Tensor

#: makes deltas that no longer have a feature; None where it cannot
Fold = Callable[[Sequence[LowRank]], "list[LowRank] | None"]

#: bits of the significand, the implicit one included
_SIGNIFICAND = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
#: the dtypes whose rounding is no more than that of a runtime's own arithmetic
_ROUNDED = ("F32", "F64")


def folded(plan: Plan, carries: Collection[str]) -> Plan:
    """The plan with nothing in it that a format does not carry and that can be folded; itself where there is nothing.

    What cannot be folded stays, for :func:`needed` to find.
    """
    before = [*of_class(plan.bound.deltas, LowRank).values(), *of_class(plan.overrides, LowRank).values()]
    after, said, now = before, [], plan
    for feature, attempts in _FOLDS.items():
        if feature in carries or not needed(now, [feature]):  # a fold may bring what the next one folds
            continue
        if (made := next(_made(attempts, after), None)) is not None:
            said.append(made[0])
            after = made[1]
            now = _with(plan, _changed(before, after))
    if not said:
        return plan
    return _noted(now, len(_changed(before, after)), said)


def _changed(before: Sequence[LowRank], after: Sequence[LowRank]) -> dict[int, LowRank]:
    """The deltas that are others now, by the ``id`` of the old one."""
    return {id(old): new for old, new in zip(before, after, strict=True) if old is not new}


def _made(attempts: Mapping[str, Fold], deltas: Sequence[LowRank]) -> Iterator[tuple[str, list[LowRank]]]:
    """The results of those that can, with the words for each, the exact one first; none where nothing changes."""
    for said, fold in attempts.items():
        if (found := fold(deltas)) is not None:
            if any(old is not new for old, new in zip(deltas, found, strict=True)):
                yield said, found
            return


def _with(plan: Plan, changed: Mapping[int, LowRank]) -> Plan:
    """The plan with some deltas replaced, by their ``id``."""
    deltas, overrides = (
        {site: changed.get(id(delta), delta) for site, delta in held.items()}
        for held in (plan.bound.deltas, plan.overrides)
    )
    made = exchanged(plan, deltas, overrides)
    return replace(made, bound=replace(made.bound, adapter=replace(made.bound.adapter, altered=True)))


def _noted(plan: Plan, count: int, said: Sequence[str]) -> Plan:
    result = _SAME if all(word in _EXACT for word in said) else _NEARLY
    found = f"{count} deltas written in another form: {'; '.join(said)}. {result}"
    return replace(plan, notes=(*plan.notes, Problem("summary", "plan", found, severity="note")))


def _one_alpha(deltas: Sequence[LowRank]) -> list[LowRank] | None:
    """The deltas with the alpha that gives each its scale as alpha/r; None where one has no such alpha."""
    return _all(_stated(replace(delta, rslora=False), delta.scale) if delta.rslora else delta for delta in deltas)


def _one_rank(deltas: Sequence[LowRank]) -> list[LowRank] | None:
    """The deltas at the largest of their ranks; None where one has no alpha for it that gives it its scale."""
    rank = max(delta.rank for delta in deltas)
    return _all(_padded(delta, rank) for delta in deltas)


def _one_scale(deltas: Sequence[LowRank], rounded: bool = False) -> list[LowRank] | None:
    """The deltas at one scale, the commonest that serves all, or 1; None where none does."""
    common = [scale for scale, _ in Counter(delta.scale for delta in deltas).most_common() if scale]
    attempts = (_all(_at_scale(delta, scale, rounded) for delta in deltas) for scale in dict.fromkeys((*common, 1.0)))
    return next((made for made in attempts if made is not None), None)


def _same_alpha(deltas: Sequence[LowRank], rounded: bool = False) -> list[LowRank] | None:
    """The deltas at one alpha, each with its own rank: the commonest that serves all; None where none does."""
    common = [alpha for alpha, _ in Counter(map(alpha_of, deltas)).most_common() if alpha]
    attempts = (_all(_at_scale(delta, alpha / delta.rank, rounded) for delta in deltas) for alpha in common)
    return next((made for made in attempts if made is not None), None)


def _all(deltas: Iterable[LowRank | None]) -> list[LowRank] | None:
    """The deltas; None where one is None, and then the rest is not made."""
    made = []
    for delta in deltas:
        if delta is None:
            return None
        made.append(delta)
    return made


def _stated(delta: LowRank, scale: float) -> LowRank | None:
    """The delta with an alpha that gives it this very scale; None where no number does."""
    alpha = scale * (sqrt(delta.rank) if delta.rslora else delta.rank)
    near = (replace(delta, alpha=number) for number in (alpha, nextafter(alpha, inf), nextafter(alpha, -inf)))
    return next((made for made in near if made.scale == scale), None)


def _padded(delta: LowRank, rank: int) -> LowRank | None:
    """The same ΔW at a larger rank: rows of zeros for A, columns of zeros for B, in each expert's own place."""
    if delta.rank == rank:
        return delta
    experts, more = delta.experts or 1, rank - delta.rank
    A = delta.A.numpy().reshape(experts, delta.rank, -1)
    B = delta.B.numpy().reshape(-1, delta.rank, experts)
    wide_A = np.concatenate([A, np.zeros((experts, more, A.shape[2]), A.dtype)], axis=1)
    wide_B = np.concatenate([B, np.zeros((len(B), more, experts), B.dtype)], axis=1)
    factors = _tensor(wide_A, experts * rank, -1), _tensor(wide_B, -1, rank * experts)
    return _stated(replace(delta, A=factors[0], B=factors[1]), delta.scale)


def _tensor(array: Array, *shape: int) -> Tensor:
    return Tensor.of(array.reshape(shape))


def _at_scale(delta: LowRank, scale: float, rounded: bool) -> LowRank | None:
    """The same ΔW at another scale, the rest of its own in B and in B's bias; None where that would round, or where
    it may be ``rounded`` and the dtype is too coarse or the numbers too large or small."""
    if delta.scale == scale:
        return delta
    if not isfinite(delta.scale):
        return None
    ratio = Fraction(delta.scale) / Fraction(scale)
    times = _times_rounded if rounded else _times
    B = times(delta.B, ratio)
    bias = None if delta.bias is None else times(delta.bias, ratio)
    if B is None or (delta.bias is not None and bias is None):
        return None
    return _stated(replace(delta, B=B, bias=bias), scale)


def _times(tensor: Tensor, ratio: Fraction) -> Tensor | None:
    """The tensor times a number, in its own dtype; None where a product is no number of it.

    Products are made in fp64, which holds them exactly where the two significands have 53 bits at most; a power of two
    moves the exponent alone.
    """
    factor, bits = float(ratio), _bits(ratio)
    if Fraction(factor) != ratio or (bits > 1 and bits + _SIGNIFICAND[tensor.dtype] > 53):
        return None
    values = tensor.float64()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        exact = values * factor
        made = Tensor.of(exact).cast(tensor.dtype)
        kept = np.array_equal(made.float64(), exact, equal_nan=True)
        back = not factor or np.array_equal(exact / factor, values, equal_nan=True)  # none under- or overflowed
    return made if kept and back else None


def _times_rounded(tensor: Tensor, ratio: Fraction) -> Tensor | None:
    """The tensor times a number, each product rounded to its dtype; None where one leaves its normal range."""
    if tensor.dtype not in _ROUNDED:
        return None
    values, limits = tensor.numpy(), np.finfo(tensor.numpy().dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        made = (tensor.float64() * float(ratio)).astype(values.dtype)
    sizes = np.abs(made[np.isfinite(values) & (values != 0)])
    normal = bool(np.all((sizes >= limits.tiny) & (sizes <= limits.max)))
    return Tensor.of(made) if normal else None


def _bits(number: Fraction) -> int:
    """The bits of the significand of a number whose denominator is a power of two."""
    top = abs(number.numerator)
    return (top // (top & -top)).bit_length() if top else 1


_INTO_B = "scales are multiplied into B, where they round nothing"
_INTO_B_ROUNDED = "scales are multiplied into B, and the products rounded to its dtype"
_SAME = "Every ΔW is the same"
_NEARLY = "Every ΔW is the same but for that rounding: 6e-8 of each number in fp32, 1e-16 in fp64"
_PADDED, _STATED = "ranks are padded with zeros", "alpha is stated for alpha/r"
_EXACT = (_INTO_B, _PADDED, _STATED)
#: feature -> what is said of a fold, and the fold; in this order: a rank is padded under the alpha that its scale has
_FOLDS: Mapping[str, Mapping[str, Fold]] = MappingProxyType(
    {
        "rslora": {_STATED: _one_alpha},
        "mixed_rank": {_PADDED: _one_rank},
        "mixed_expert_rank": {_PADDED: _one_rank},
        "mixed_scale": {_INTO_B: _one_scale, _INTO_B_ROUNDED: partial(_one_scale, rounded=True)},
        "mixed_alpha": {_INTO_B: _same_alpha, _INTO_B_ROUNDED: partial(_same_alpha, rounded=True)},
    }
)
#: features that are folded where that changes nothing, or rounds what the dtype can bear
FOLDED = tuple(_FOLDS)
