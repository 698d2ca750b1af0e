"""Adapters at another rank: the best approximation of a smaller one, or padded with zeros to a larger one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np

from adaptrix.adapter import Adapter
from adaptrix.algebra.factors import Loss, assembled, measured, scaled, total
from adaptrix.algebra.operands import NOT_SHOWN, Operand, bundles_of, gather
from adaptrix.algebra.outcome import Outcome, published, too_large, worst
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter
from adaptrix.delta import LowRank, Parametrised, Spectrum, of_class, spectrum
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import Problem, RefusedError, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import Tensor


@dataclass(frozen=True)
class Size:
    """The rank of every delta, or the share of each one's ‖ΔW‖² that the smallest rank which has it keeps."""

    rank: int | None = None
    energy: float | None = None

    def of(self, spectra: list[Spectrum], delta: LowRank) -> int:
        """The new rank of a delta: one for all its experts, and by energy never more than it has."""
        if self.rank is not None:
            return self.rank
        return min(max(_enough(found.values**2, self.energy or 1.0) for found in spectra), delta.rank)


def resize_adapter(
    pipeline: Pipeline,
    subject: Adapter | str,
    size: Size,
    out: str | PathLike[str] | None,
    options: Options,
    busy: AbstractContextManager[Any] = NOT_SHOWN,
) -> Outcome:
    """Writes an adapter at another rank, with the relative error of every site.

    - ``subject``: an adapter, or its path or uri.
    - ``size``: the rank, or the share of ‖ΔW‖² to keep.
    - ``out``: the path to write, or a folder; None names it after the adapter.
    - ``options``: the output's format, dtype, name, and the base whose dims are checked.
    - ``busy``: entered once everything is fetched, for a display.

    A delta that has the rank already is left as it is, to the byte. What is cut away is the least in the Frobenius
    norm; a larger rank changes no ΔW, and its new rows and columns are zero. Raises :class:`UsageError` for a size
    that makes no sense, :class:`RefusedError` where a DoRA would have to be cut: the result would depend on the base.
    """
    _require_size(size)
    pipeline.prepare(out, options)
    (operand,) = gather(pipeline, [subject], options.base)
    with busy:
        return _written(pipeline, operand, size, out, options)


def _written(
    pipeline: Pipeline, operand: Operand, size: Size, out: str | PathLike[str] | None, options: Options
) -> Outcome:
    bound = operand.bound
    dtype = dtype_name(options.dtype) if options.dtype is not None else None
    deltas: dict[Site, LowRank] = {}
    losses: dict[Site, Loss] = {}
    problems: list[Problem] = []
    for site, delta in operand.deltas.items():
        try:
            with np.errstate(all="ignore"):  # what has no room in the dtype is refused below
                deltas[site], losses[site] = _resized(delta, size, dtype or delta.A.dtype, site)
        except RefusedError as error:
            problems += error.problems
        except np.linalg.LinAlgError:
            problems.append(too_large(site))
    if problems:
        raise RefusedError(problems)
    changed = {site for site, delta in deltas.items() if delta is not operand.deltas[site]}
    resized = _rebound(bound, deltas, options.name or f"{bound.adapter.name}-{_suffix(size)}", altered=bool(changed))
    notes = list(_notes(bound, deltas, losses, size))
    said, files, names = operand.problems, bundles_of([operand]), [operand.name]
    return published(pipeline, resized, losses, notes, out, options, files, said, sources=names, base=options.base)


def _require_size(size: Size) -> None:
    problems = []
    if (size.rank is None) == (size.energy is None):
        problems.append(Problem("option", "rank", "rank and energy" if size.rank else "neither", "--rank or --energy"))
    if size.rank is not None and size.rank < 1:
        problems.append(Problem("option", "rank", f"{size.rank}", "a whole number of at least 1"))
    if size.energy is not None and not 0 < size.energy <= 1:
        problems.append(Problem("option", "energy", f"{size.energy}", "a share above 0, at most 1, such as 0.99"))
    if problems:
        raise UsageError(problems)


def _resized(delta: LowRank, size: Size, dtype: str, site: Site) -> tuple[LowRank, Loss]:
    """A delta at its new size, in a dtype, and what that has lost."""
    pairs = scaled(delta)
    spectra = [spectrum(A, B) for A, B in pairs] if size.rank is None or size.rank < delta.rank else []
    rank = size.of(spectra, delta)
    exact = rank >= delta.rank and dtype == delta.A.dtype == delta.B.dtype
    if exact and rank == delta.rank:
        return delta, Loss(delta.energy(), 0.0)
    found = _padded(delta, rank, dtype) if rank >= delta.rank else _cut(delta, spectra, rank, dtype, site)
    return found, Loss(delta.energy(), 0.0) if exact else measured(pairs, scaled(found))


def _cut(delta: LowRank, spectra: list[Spectrum], rank: int, dtype: str, site: Site) -> LowRank:
    """The best delta of a smaller rank; its scale is 1."""
    if delta.magnitude is not None:
        found = f"DoRA of rank {delta.rank}: what a smaller rank does to it depends on the base"
        remedy = "Merge it with `adaptrix merge`, and `adaptrix extract` a LoRA of that rank from the result."
        raise RefusedError(
            Problem("kind-unsupported", str(site), found, f"plain LoRA, or a rank of at least {delta.rank}", remedy)
        )
    pairs = [found.factors(rank) for found in spectra]
    missing = rank - len(pairs[0][0])  # a weight has no more singular values than its smaller side
    pairs = [(np.pad(A, ((0, missing), (0, 0))), np.pad(B, ((0, 0), (0, missing)))) for A, B in pairs]
    bias = None if delta.bias is None else Tensor.of(delta.scale * delta.bias.float64()).cast(dtype)
    return replace(assembled(pairs, dtype, delta), bias=bias, transposed=delta.transposed)


def _padded(delta: LowRank, rank: int, dtype: str) -> LowRank:
    """The same delta under a larger rank, whose new part is zero, or under the same in another dtype."""
    more = rank - delta.rank
    pairs = [(np.pad(A, ((0, more), (0, 0))), np.pad(B, ((0, 0), (0, more)))) for A, B in delta.factors()]
    found = assembled(pairs, dtype, delta, delta.scale)
    bias, magnitude = (vector and vector.cast(dtype) for vector in (delta.bias, delta.magnitude))
    return replace(found, bias=bias, magnitude=magnitude, transposed=delta.transposed)


def _enough(squares: np.ndarray[tuple[int, ...], np.dtype[np.float64]], share: float) -> int:
    """The least number of squares, largest first, that hold a share of their sum; at least one."""
    sums = np.cumsum(squares)
    return min(int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1, len(squares))


def _suffix(size: Size) -> str:
    return f"r{size.rank}" if size.rank is not None else f"e{size.energy:g}"


def _rebound(bound: BoundAdapter, deltas: Mapping[Site, LowRank], name: str, *, altered: bool) -> BoundAdapter:
    by_target = MappingProxyType({bound.targets[site]: delta for site, delta in deltas.items()})
    altered = altered or bound.adapter.altered or bool(of_class(bound.deltas, Parametrised))
    extras = {key: extra for key, extra in bound.adapter.extras.items() if extra.kind != "shared"}
    adapter = replace(bound.adapter, name=name, deltas=by_target, altered=altered, recorded=None)
    adapter = replace(adapter, extras=MappingProxyType(extras))
    return replace(bound, adapter=adapter, deltas=MappingProxyType(dict(deltas)))


def _notes(
    bound: BoundAdapter, deltas: Mapping[Site, LowRank], losses: Mapping[Site, Loss], size: Size
) -> Iterator[Problem]:
    before, after = ({delta.rank for delta in held.values()} for held in (bound.deltas, deltas))
    kept = "" if size.energy is None else f" for {size.energy:g} of ‖ΔW‖² at every site"
    found = f"{_span(before)} made {_span(after)}{kept}; relative error of ΔW {total(losses.values()).error:.2e}"
    site = worst(losses)
    yield Problem("approximation", "rank", f"{found}, at most {losses[site].error:.2e} ({site})", severity="note")
    if padded := sum(delta.rank > bound.deltas[site].rank for site, delta in deltas.items()):
        found = f"{padded} deltas have rows of A and columns of B that are zero: training would not move them"
        yield Problem("summary", "rank", found, severity="note")


def _span(ranks: set[int]) -> str:
    return f"rank {min(ranks)}" if len(ranks) == 1 else f"rank {min(ranks)} to {max(ranks)}"
