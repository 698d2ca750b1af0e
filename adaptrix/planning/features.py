"""Features that a plan needs of a file format, and those of them that can be folded without a change of any ΔW.

Ranks are padded with zeros, an rsLoRA's alpha is stated for alpha/r, and where a format has one scale for all, the rest
of a delta's own scale goes into its B: only where every product is a number of B's dtype, so that nothing is rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import inf, isfinite, nextafter, sqrt
from types import MappingProxyType

import numpy as np

from adaptrix.architecture import Architecture, Site
from adaptrix.delta import Delta, LowRank, Parametrised, Scale, of_class
from adaptrix.errors import Problem
from adaptrix.feature_names import FEATURES
from adaptrix.planning.lowering import exchanged
from adaptrix.planning.plan import Plan
from adaptrix.tensor import Array, Tensor

#: finds where a plan has a feature, among all deltas of the plan
Has = Callable[[Plan, Sequence[tuple[Site, Delta]]], Sequence[object]]

#: bits of the significand, the implicit one included
_SIGNIFICAND = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}


def needed(plan: Plan, among: Collection[str] = FEATURES) -> dict[str, list[str]]:
    """The features that a plan needs, each with the sites or extras that have it; those of what does not act, too.

    ``among``: the features to look for.
    """
    deltas = [*plan.bound.deltas.items(), *plan.overrides.items()]
    found = {
        feature: [*dict.fromkeys(map(str, has(plan, deltas)))] for feature, has in _HAS.items() if feature in among
    }
    return {feature: where for feature, where in found.items() if where}


def folded(plan: Plan, carries: Collection[str]) -> Plan:
    """The plan with nothing in it that a format does not carry and that can be folded; itself where there is nothing.

    What cannot be folded stays, for :func:`needed` to find.
    """
    lacking = needed(plan, [feature for feature in FOLDED if feature not in carries])
    if not lacking:
        return plan
    before = [*of_class(plan.bound.deltas, LowRank).values(), *of_class(plan.overrides, LowRank).values()]
    after, said = before, []
    for feature, fold in _FOLDS.items():
        if feature in lacking and (made := fold(after)) is not None:
            after = made
            said.append(_SAID[feature])
    if not said:
        return plan
    changed = {id(old): new for old, new in zip(before, after, strict=True) if old is not new}
    return _noted(_with(plan, changed), len(changed), said)


def _each(has: Callable[[Site, Delta, Architecture], bool]) -> Has:
    """A feature of single deltas."""
    return lambda plan, deltas: [site for site, delta in deltas if has(site, delta, plan.bound.architecture)]


def _unusual(value: Callable[[LowRank], float]) -> Has:
    """A feature of deltas that differ: the sites of those with another value than most."""

    def found(_plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
        values = [(site, value(delta)) for site, delta in deltas if isinstance(delta, LowRank)]
        most = Counter(number for _, number in values).most_common(1)
        return [site for site, number in values if number != most[0][0]]

    return found


def _idle_or_changed(plan: Plan, _deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
    if plan.complete:
        return []
    acting = {site: plan.gains.get(-1 if site.layer is None else site.layer, 1.0) for site in plan.sites}
    return [site for site in plan.bound.deltas if site in plan.overrides or acting.get(site) != 1.0]


def _parametrised(*, described: bool) -> Has:
    """The parametrised deltas of an adapter that is what a PEFT config says of it, or of one that is not."""

    def found(plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
        adapter = plan.bound.adapter
        fits = adapter.provenance.format == "peft" and not adapter.altered
        return [site for site, delta in deltas if isinstance(delta, Parametrised) and fits is described]

    return found


def _on_embedding(site: Site, delta: Delta, family: Architecture) -> bool:
    role = family.roles.get(site.role)
    return (isinstance(delta, LowRank) and delta.embedding) or (role is not None and role.orientation == "embedding")


def _with(plan: Plan, changed: Mapping[int, LowRank]) -> Plan:
    """The plan with some deltas replaced, by their ``id``."""
    deltas, overrides = (
        {site: changed.get(id(delta), delta) for site, delta in held.items()}
        for held in (plan.bound.deltas, plan.overrides)
    )
    made = exchanged(plan, deltas, overrides)
    return replace(made, bound=replace(made.bound, adapter=replace(made.bound.adapter, altered=True)))


def _noted(plan: Plan, count: int, said: Sequence[str]) -> Plan:
    found = f"{count} deltas written in another form: {'; '.join(said)}. Every ΔW is the same"
    return replace(plan, notes=(*plan.notes, Problem("summary", "plan", found, severity="note")))


def _one_alpha(deltas: Sequence[LowRank]) -> list[LowRank] | None:
    """The deltas with the alpha that gives each its scale as alpha/r; None where one has no such alpha."""
    return _all(_stated(replace(delta, rslora=False), delta.scale) if delta.rslora else delta for delta in deltas)


def _one_rank(deltas: Sequence[LowRank]) -> list[LowRank] | None:
    """The deltas at the largest of their ranks; None where one has no alpha for it that gives it its scale."""
    rank = max(delta.rank for delta in deltas)
    return _all(_padded(delta, rank) for delta in deltas)


def _one_scale(deltas: Sequence[LowRank]) -> list[LowRank] | None:
    """The deltas at one scale, the commonest that is exact for all, or 1; None where none is."""
    common = [scale for scale, _ in Counter(delta.scale for delta in deltas).most_common() if scale]
    attempts = (_all(_at_scale(delta, scale) for delta in deltas) for scale in dict.fromkeys((*common, 1.0)))
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


def _at_scale(delta: LowRank, scale: float) -> LowRank | None:
    """The same ΔW at another scale, the rest of its own in B and in B's bias; None where that would round."""
    if delta.scale == scale:
        return delta
    if not isfinite(delta.scale):
        return None
    ratio = Fraction(delta.scale) / Fraction(scale)
    B = _times(delta.B, ratio)
    bias = None if delta.bias is None else _times(delta.bias, ratio)
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


def _bits(number: Fraction) -> int:
    """The bits of the significand of a number whose denominator is a power of two."""
    top = abs(number.numerator)
    return (top // (top & -top)).bit_length() if top else 1


_HAS: Mapping[str, Has] = MappingProxyType(
    {
        "dora": _each(lambda _site, delta, _family: "magnitude" in delta.tensors()),
        "bias": _each(lambda _site, delta, _family: "lora_B.bias" in delta.tensors()),
        "mixed_rank": _unusual(lambda delta: delta.rank),
        "mixed_scale": _unusual(lambda delta: delta.scale),
        "rslora": _each(lambda _site, delta, _family: isinstance(delta, LowRank) and delta.rslora),
        "embeddings": _each(_on_embedding),
        "head": _each(lambda site, delta, family: site.layer is None and not _on_embedding(site, delta, family)),
        "experts": _each(lambda _site, delta, _family: delta.experts is not None),
        "extras": lambda plan, _deltas: list(plan.bound.adapter.extras),
        "spectral": _each(lambda _site, delta, _family: delta.kind == "spectral"),
        "parametrised": _parametrised(described=True),
        "reparametrised": _parametrised(described=False),
        "scales": _each(lambda _site, delta, _family: isinstance(delta, Scale)),
        "plan": _idle_or_changed,
    }
)
#: in this order: a rank is padded under the alpha that its scale is stated by
_FOLDS: Mapping[str, Callable[[Sequence[LowRank]], list[LowRank] | None]] = MappingProxyType(
    {"rslora": _one_alpha, "mixed_rank": _one_rank, "mixed_scale": _one_scale}
)
#: features that are folded where that is exact
FOLDED = tuple(_FOLDS)
_SAID: Mapping[str, str] = MappingProxyType(
    {
        "rslora": "alpha is stated for alpha/r",
        "mixed_rank": "ranks are padded with zeros",
        "mixed_scale": "scales are multiplied into B, where they round nothing",
    }
)
