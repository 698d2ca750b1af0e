"""Plans that change deltas: folding dropped layers into kept ones, and recompression to a rank.

The cost of a step is measured on the factors that will be written, after rounding to their dtype,
against the exact sum; nothing is estimated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import isfinite, nan
from types import MappingProxyType
from typing import Literal

import numpy as np

from adaptrix.architecture import Site
from adaptrix.delta import LowRank, Matrix, distance, from_factors, of_class, require_low_rank, stack, truncate
from adaptrix.errors import Problem, RefusedError
from adaptrix.planning.plan import Plan
from adaptrix.tensor import Tensor

Redistribution = Literal["none", "nearest"]


def reshape_plan(plan: Plan, redistribute: Redistribution, rank: int | None) -> Plan:
    """The plan with its deltas folded and recompressed as asked; itself where nothing was asked.

    A rank alone applies to the active LoRAs, overrides included; folding starts from the adapter's own. Spectral
    deltas get their rank where they become LoRAs (:mod:`adaptrix.planning.lowering`).

    ``nearest``: every delta of a layer outside the plan is added to the delta of the same role in the
    nearest layer inside it (the lower one of two); ranks add up. ``rank``: each delta of a higher rank
    becomes the best one of that rank. Raises :class:`RefusedError` for DoRA and stacked experts, which
    are no sums of low-rank terms, and for sums or products beyond the range of their dtype.
    """
    if redistribute == "none" and rank is None:
        return plan
    groups, lost = _grouped(plan) if redistribute == "nearest" else ({site: [site] for site in plan.sites}, [])
    earlier = plan.overrides if redistribute == "none" else {}
    deltas = {**plan.bound.deltas, **earlier}
    above = {s for s, delta in of_class(deltas, LowRank).items() if rank and delta.rank > rank}
    changed = {s: members for s, members in groups.items() if len(members) > 1 or s in above}
    name, touched = plan.bound.adapter.name, [member for members in changed.values() for member in members]
    plain = require_low_rank({site: deltas[site] for site in touched}, name, "--redistribute or --rank")
    _require_sums(plain, changed.values())
    results = _combined({site: [plain[member] for member in members] for site, members in changed.items()}, rank)
    notes = [*plan.notes, *_notes(results, changed, rank), *_unfolded(lost)]
    if redistribute == "nearest" and not plan.idle:
        found, remedy = "no delta is left out, so --redistribute had nothing to fold", "--layers chooses fewer layers."
        notes.append(Problem("left-out", "plan", found, remedy=remedy, severity="warning"))
    overrides = MappingProxyType({**earlier, **{site: delta for site, (delta, _) in results.items()}})
    fit = (
        plan.fit if not results and overrides.keys() == plan.overrides.keys() else None
    )  # changed deltas are no longer those of the fit
    return replace(plan, overrides=overrides, notes=tuple(notes), fit=fit)


def _grouped(plan: Plan) -> tuple[dict[Site, list[Site]], list[Site]]:
    """Kept site -> the sites that are summed there, itself first; and the sites that no kept one takes.

    A site is summed at the kept site of the same role, part and expert whose layer is nearest, the lower one of two.
    """
    groups = {site: [site] for site in plan.sites}
    layers: dict[Site, list[int]] = {}
    for site in groups:
        if site.layer is not None:
            layers.setdefault(replace(site, layer=None), []).append(site.layer)
    lost = []
    for site in plan.bound.deltas:
        kept = layers.get(replace(site, layer=None)) if site.layer is not None else None
        if site not in groups and kept:
            groups[replace(site, layer=_nearest(site.layer or 0, kept))].append(site)
        elif site not in groups:
            lost.append(site)
    return groups, lost


def _nearest(layer: int, kept: list[int]) -> int:
    """The nearest of some sorted layers, the lower one of two."""
    index = bisect_left(kept, layer)
    return min(kept[max(index - 1, 0) : index + 1], key=lambda other: abs(other - layer))


def _require_sums(deltas: Mapping[Site, LowRank], groups: Iterable[list[Site]]) -> None:
    unsummable = [s for members in groups for s in members if (d := deltas[s]).magnitude is not None or d.experts]
    if unsummable:
        raise RefusedError(
            Problem(
                "kind-unsupported",
                str(site),
                "DoRA or stacked experts: no sum of low-rank terms",
                "plain LoRA",
                "Leave out --redistribute and --rank for this adapter.",
            )
            for site in unsummable
        )


def _combined(groups: Mapping[Site, list[LowRank]], rank: int | None) -> dict[Site, tuple[LowRank, float]]:
    results, problems = {}, []
    for site, deltas in groups.items():
        try:
            with np.errstate(all="ignore"):  # the result is measured
                results[site] = _combine(deltas, rank)
        except np.linalg.LinAlgError:  # the SVD of what is not finite
            results[site] = deltas[0], nan
        if not isfinite(results[site][1]):
            found = f"NaN, Inf, or numbers too large to be added up in {deltas[0].A.dtype}"
            remedy = "Leave out --redistribute and --rank, or convert with a wider --dtype first."
            problems.append(Problem("nonfinite", str(site), found, "finite numbers", remedy))
    if problems:
        raise RefusedError(problems)
    return results


def _combine(deltas: list[LowRank], rank: int | None) -> tuple[LowRank, float]:
    """One delta for the sum of several, and its measured relative error."""
    A, B = stack(deltas)
    own, dtype = deltas[0], deltas[0].A.dtype
    combined = from_factors(*(truncate(A, B, rank) if rank is not None and rank < A.shape[0] else (A, B)), dtype)
    combined = replace(combined, bias=_bias(deltas, dtype), embedding=own.embedding)
    return combined, distance(combined, A, B)


def _bias(deltas: list[LowRank], dtype: str) -> Tensor | None:
    """The sum of the scaled biases; the combined delta has scale 1."""
    scaled: list[Matrix] = [delta.scale * delta.bias.float64() for delta in deltas if delta.bias is not None]
    return Tensor.of(np.sum(scaled, axis=0)).cast(dtype) if scaled else None


def _notes(
    results: dict[Site, tuple[LowRank, float]], changed: dict[Site, list[Site]], rank: int | None
) -> Iterator[Problem]:
    if not results:
        return
    worst = max(results, key=lambda site: results[site][1])
    folded = sum(len(members) - 1 for members in changed.values())
    ranks = sorted({delta.rank for delta, _ in results.values()})
    done = f"{folded} deltas folded into {len(changed)}" if folded else f"{len(changed)} deltas recompressed"
    limit = f" (--rank {rank})" if rank is not None else ""
    found = f"{done}, rank {_span(ranks)}{limit}; relative error of ΔW at most {results[worst][1]:.2e} ({worst})"
    yield Problem("approximation", "plan", found, severity="note")


def _span(ranks: list[int]) -> str:
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _unfolded(lost: list[Site]) -> Iterator[Problem]:
    if lost:
        names = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
        yield Problem(
            "left-out", "plan", f"{len(lost)} deltas have no kept layer of their role: {names}", severity="warning"
        )
