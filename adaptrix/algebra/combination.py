"""Combination of several adapters of one base: the weighted sum of their ΔW, or a method's approximation of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from os import PathLike
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy as np

from adaptrix.adapter import Adapter, Extra, Provenance
from adaptrix.algebra.alignment import Alignment, Row, align
from adaptrix.algebra.factors import Loss, assembled, compared, measured, rounding, scaled, total
from adaptrix.algebra.methods import (
    SPARSE,
    Merged,
    Term,
    concatenated,
    mixed,
    truncated,
    weighted_sum,
)
from adaptrix.algebra.operands import NOT_SHOWN, Operand, bundles_of, gather, said_of
from adaptrix.algebra.outcome import Outcome, published, too_large, worst
from adaptrix.algebra.recipe import Recipe, require_recipe, require_sums
from adaptrix.architecture import Site
from adaptrix.binding.bind import bind
from adaptrix.delta import LowRank
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import Problem, RefusedError
from adaptrix.formats.peft_write import STACKED_SINCE
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import Tensor

#: config keys about what a combination does not hold
_DROPPED = ("modules_to_save", "trainable_token_indices", "bias", "target_parameters")


def combine_adapters(
    pipeline: Pipeline,
    subjects: Sequence[Adapter | str],
    recipe: Recipe,
    out: str | PathLike[str] | None,
    options: Options,
    busy: AbstractContextManager[Any] = NOT_SHOWN,
) -> Outcome:
    """Writes one adapter for the weighted sum of several, with the error of every site.

    - ``subjects``: adapters, or their paths and uris.
    - ``recipe``: weights, method and what belongs to it.
    - ``out``: the path to write, or a folder; None names it after the adapters.
    - ``options``: the output's format, dtype, name, and the base whose dims are checked.
    - ``busy``: entered once everything is fetched, for a display.

    Raises :class:`UsageError` for a recipe that makes no sense, :class:`RefusedError` for adapters of different
    models, for those that cannot be summed (DoRA), and for extras that cannot be added.
    """
    require_recipe(recipe, subjects)
    pipeline.prepare(out, options)
    operands = gather(pipeline, subjects, options.base)
    with busy:
        return _combined(pipeline, operands, recipe, out, options)


def _combined(
    pipeline: Pipeline,
    operands: Sequence[Operand],
    recipe: Recipe,
    out: str | PathLike[str] | None,
    options: Options,
) -> Outcome:
    aligned = align(operands)
    require_sums(operands, aligned, recipe)
    weights = recipe.shares(len(operands))
    merged = _merged(aligned, weights, recipe)
    dtype = _dtype(aligned, merged, options.dtype)
    deltas = {site: _delta(aligned.rows[site], weights, found, dtype) for site, found in merged.items()}
    with np.errstate(all="ignore"):  # what has no room in the dtype is refused below
        losses = {site: _loss(aligned.rows[site], weights, merged[site], deltas[site]) for site in deltas}
    adapter = _adapter(operands, aligned, _with_biases(deltas), recipe, options.name)
    notes = [*_notes(recipe, operands, deltas, losses), *_bases(operands)]
    bound = bind(adapter, aligned.identity)
    names, files = [operand.name for operand in operands], bundles_of(operands)
    said = said_of(operands)
    return published(pipeline, bound, losses, notes, out, options, files, said, sources=names, base=options.base)


def _terms(row: Row, weights: Sequence[float]) -> list[list[Term]]:
    """The terms of a site's sum, for each expert."""
    held = [(weight, delta) for weight, delta in zip(weights, row, strict=True) if delta is not None]
    by_adapter = [[Term(weight * delta.scale, A, B) for A, B in delta.factors()] for weight, delta in held]
    return [list(terms) for terms in zip(*by_adapter, strict=True)]


def _merged(aligned: Alignment, weights: Sequence[float], recipe: Recipe) -> dict[Site, list[Merged]]:
    """The result of the method at every site, for each expert."""
    found, problems = {}, []
    for site, row in aligned.rows.items():
        try:
            rng = np.random.default_rng([recipe.seed, crc32(str(site).encode())])  # independent of the other sites
            found[site] = [_one(terms, recipe, rng) for terms in _terms(row, weights)]
        except np.linalg.LinAlgError:
            problems.append(too_large(site))
    if problems:
        raise RefusedError(problems)
    return found


def _one(terms: Sequence[Term], recipe: Recipe, rng: np.random.Generator) -> Merged:
    if recipe.method in SPARSE:
        return SPARSE[recipe.method](terms, recipe.density or 0.5, rng)
    if recipe.method == "svd":
        return truncated(terms, recipe.rank)
    return concatenated(terms) if recipe.method == "cat" else mixed(terms, weighted_sum)


def _dtype(aligned: Alignment, merged: Mapping[Site, Sequence[Merged]], asked: str | None) -> str:
    """The dtype asked for; the adapters' own where their numbers stay as they are, else F32 or more."""
    if asked is not None:
        return dtype_name(asked)
    held = {t.dtype for row in aligned.rows.values() for delta in row if delta is not None for t in (delta.A, delta.B)}
    if len(held) == 1 and all(one.untouched for found in merged.values() for one in found):
        return held.pop()
    return "F64" if "F64" in held else "F32"


def _delta(row: Row, weights: Sequence[float], found: Sequence[Merged], dtype: str) -> LowRank:
    like = next(delta for delta in row if delta is not None)
    delta = assembled([(one.A, one.B) for one in found], dtype, like, found[0].scale)
    biases = [
        weight * one.scale / delta.scale * one.bias.float64()
        for weight, one in zip(weights, row, strict=True)
        if one is not None and one.bias is not None
    ]
    return replace(delta, bias=Tensor.of(np.sum(biases, axis=0)).cast(dtype)) if biases else delta


def _with_biases(deltas: Mapping[Site, LowRank]) -> dict[Site, LowRank]:
    """The deltas with a bias each if any of them has one, zero where there is none: peft has all or none."""
    if all(delta.bias is None for delta in deltas.values()):
        return dict(deltas)
    filled = {site: Tensor.of(np.zeros(delta.shape[0])).cast(delta.A.dtype) for site, delta in deltas.items()}
    return {site: replace(delta, bias=delta.bias or filled[site]) for site, delta in deltas.items()}


def _loss(row: Row, weights: Sequence[float], found: Sequence[Merged], delta: LowRank) -> Loss:
    """The loss that the method knows, where rounding adds next to nothing; else the one that is measured."""
    if all(one.exact for one in found):
        whole = rounding([(one.A, one.B) for one in found], delta.factors())
        return Loss(delta.scale**2 * whole.wanted, delta.scale**2 * whole.lost)
    known = [one.loss for one in found if one.loss is not None]
    if known and delta.A.dtype in ("F32", "F64"):
        return total(known)
    sums = [concatenated(terms) for terms in _terms(row, weights)]
    measure = measured if known else compared  # nearly exact results need the slower measure
    return measure([(one.A, one.scale * one.B) for one in sums], scaled(delta))


def _adapter(
    operands: Sequence[Operand],
    aligned: Alignment,
    deltas: Mapping[Site, LowRank],
    recipe: Recipe,
    name: str | None,
) -> Adapter:
    """The combination as an adapter, with its own provenance."""
    adapters = [operand.bound.adapter for operand in operands]
    extras: dict[str, Extra] = {}
    for adapter in () if recipe.drop_extras else adapters:
        extras |= {key: extra for key, extra in adapter.extras.items() if extra.kind != "shared"}
    return Adapter(
        name=name or "+".join(adapter.name for adapter in adapters)[:200],
        deltas=MappingProxyType({aligned.targets[site]: delta for site, delta in deltas.items()}),
        extras=MappingProxyType(extras),
        provenance=_provenance(adapters, recipe),
        base=next((adapter.base for adapter in adapters if adapter.base is not None), None),
        altered=True,
    )


def _provenance(adapters: Sequence[Adapter], recipe: Recipe) -> Provenance:
    """The recipe, the digests of all files, and what the configs agree on."""
    weights = recipe.shares(len(adapters))
    said = [f"{weight:g} {adapter.name.replace('/', ' ')}" for weight, adapter in zip(weights, adapters, strict=True)]
    files = {
        f"{number} {name}": digest
        for number, adapter in enumerate(adapters, 1)
        for name, digest in adapter.provenance.files.items()
    }
    peft = all(adapter.provenance.format == "peft" for adapter in adapters)
    config = _agreed([adapter.provenance.config for adapter in adapters], recipe) if peft else {}
    return Provenance(
        uri=f"combine --method {recipe.method}: {' + '.join(said)}",
        format="peft" if peft else "combine",
        files=MappingProxyType(files),
        config=MappingProxyType(config),
    )


def _agreed(configs: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The keys on which all configs agree, without those about what is left out."""
    gone: Collection[str] = (*_DROPPED, "task_type") if recipe.drop_extras else _DROPPED
    first = {key: value for key, value in configs[0].items() if key not in gone}
    agreed = {key: value for key, value in first.items() if all(config.get(key) == value for config in configs)}
    parameters = sorted({name for config in configs for name in config.get("target_parameters") or ()})
    stacked = {"target_parameters": parameters, "peft_version": STACKED_SINCE}  # as the factors lie in an alignment
    return agreed | (stacked if parameters else {})


def _notes(
    recipe: Recipe, operands: Sequence[Operand], deltas: Mapping[Site, LowRank], losses: Mapping[Site, Loss]
) -> Iterator[Problem]:
    weights = recipe.shares(len(operands))
    said = " + ".join(f"{weight:g} × {operand.name}" for weight, operand in zip(weights, operands, strict=True))
    ranks = sorted({delta.rank for delta in deltas.values()})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    site = worst(losses)
    error = f"relative error of ΔW {total(losses.values()).error:.2e}, at most {losses[site].error:.2e} ({site})"
    yield Problem("summary", recipe.method, f"{said}; rank {span}; {error}", severity="note")
    extras = sum(len(operand.bound.adapter.extras) for operand in operands)
    if recipe.drop_extras and extras:
        yield Problem("left-out", "--drop-extras", f"{extras} tensors that are no deltas are left out", severity="note")


def _bases(operands: Sequence[Operand]) -> Iterator[Problem]:
    bases = sorted({operand.bound.adapter.base for operand in operands if operand.bound.adapter.base is not None})
    if len(bases) > 1:
        found = f"the adapters name different bases: {', '.join(bases)}"
        yield Problem(
            "base-mismatch", "adapters", found, remedy="A sum means little unless they are one.", severity="warning"
        )
