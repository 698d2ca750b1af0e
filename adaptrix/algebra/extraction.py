"""Extraction of a LoRA from a full fine-tune: the best factors of a rank for every linear layer's difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np

from adaptrix.adapter import Adapter, Extra, Provenance, Target
from adaptrix.algebra.factors import Loss, total
from adaptrix.algebra.finetune import WeightDifference, WeightDifferences, changes, difference, kept_whole, kinds
from adaptrix.algebra.lora_svd import SOLVERS, Solver, best_pair, residual
from adaptrix.algebra.operands import NOT_SHOWN
from adaptrix.algebra.outcome import Outcome, published, require_room, too_large
from adaptrix.architecture import Architecture, Site
from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.base.fetch import fetch_base
from adaptrix.base.model_view import without_numbers
from adaptrix.base.names import ModelNames, renamed
from adaptrix.binding.bind import bind
from adaptrix.binding.identify import Identity, by_config
from adaptrix.delta import LowRank, from_factors
from adaptrix.dtype_names import dtype_name
from adaptrix.errors import AdaptrixError, Problem, RefusedError, UsageError, errors_in, refuse
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.records import Bundle
from adaptrix.wording import some


@dataclass(frozen=True)
class Extraction:
    """The settings of an extraction.

    - ``rank``: of every delta; a weight with a smaller side gets that.
    - ``solver``: ``exact``, ``randomised``, or ``auto``; see :func:`adaptrix.algebra.lora_svd.best_pair`.
    - ``seed``: of the randomised solver.
    - ``save``, ``ignore``: patterns of tensor names, for changes that a LoRA cannot hold: kept whole, or left out.
    """

    rank: int = 16
    solver: Solver = "auto"
    seed: int = 0
    save: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def extract_adapter(
    pipeline: Pipeline,
    tuned: str,
    base: str,
    extraction: Extraction,
    out: str | PathLike[str] | None,
    options: Options,
    busy: AbstractContextManager[Any] = NOT_SHOWN,
) -> Outcome:
    """Writes the LoRA that turns ``base`` into ``tuned``, as nearly as its rank allows; ``losses`` say how nearly.

    - ``tuned``, ``base``: folders or ``owner/name``, both with their weights.
    - ``extraction``: rank, solver, and what becomes of changes that a LoRA cannot hold.
    - ``out``: the path to write, or a folder; None names it after the fine-tune.
    - ``options``: the output's format, dtype (fp32 by default) and name.
    - ``busy``: entered once everything is fetched, for a display.

    One weight is in memory at a time. Raises :class:`RefusedError` for models that are not of one family and size,
    and for changes that a LoRA cannot hold and that neither ``save`` nor ``ignore`` names.
    """
    _require_sense(extraction)
    pipeline.prepare(out, options)
    name = options.name or f"{tuned.rstrip('/').rpartition('/')[2]}-lora"
    require_room(pipeline, name, out, options)
    models = fetch_base(base, pipeline), fetch_base(tuned, pipeline)
    with busy:
        return _extracted(pipeline, models, extraction, name, out, options)


def _extracted(
    pipeline: Pipeline,
    models: tuple[BaseCheckpoint, BaseCheckpoint],
    extraction: Extraction,
    name: str,
    out: str | PathLike[str] | None,
    options: Options,
) -> Outcome:
    base, tuned = models
    identity = _identity(pipeline, base, tuned)
    found = changes(base, tuned, identity.architecture)
    if not found.targets:
        raise refuse(
            "adapter-empty", tuned.name, "no weight of a linear layer differs from the base's", "a fine-tune of it"
        )
    extras, ignored = kept_whole(found, tuned, identity.architecture, extraction.save, extraction.ignore)
    _require_finite(found, extras)
    deltas, losses = _deltas(found, identity, extraction, dtype_name(options.dtype or "F32"))
    adapter = Adapter(
        name=name,
        deltas=MappingProxyType({_target(found.targets[site]): delta for site, delta in deltas.items()}),
        extras=MappingProxyType(extras),
        provenance=_provenance(models, extraction, extras),
        base=base.name,
        altered=True,
    )
    adapter = _in_module_names(adapter, base, identity.architecture)
    notes = [*_notes(deltas, losses, extras, ignored), *found.notes]
    files = [Bundle(model.name, model.name, {file.name: file for file in model.files()}) for model in models]
    bound = bind(adapter, identity)
    return published(pipeline, bound, losses, notes, out, options, files, sources=[tuned.name], base=base.name)


def _in_module_names(adapter: Adapter, base: BaseCheckpoint, architecture: Architecture) -> Adapter:
    """The adapter under the names of the model's modules, where those of the files are others, as peft looks for them.

    As the files have it where transformers is not there or does not know the model.
    """
    start = architecture.prefixes[0] if architecture.prefixes else ""
    if all(target.path.startswith(start) for target in adapter.deltas):
        return adapter
    try:
        names = ModelNames(without_numbers(base.config, base.name))
    except AdaptrixError:
        return adapter
    return renamed(adapter, names, lambda _: None)


def _require_sense(extraction: Extraction) -> None:
    problems = []
    if extraction.rank < 1:
        problems.append(Problem("option", "rank", f"{extraction.rank}", "a whole number of at least 1"))
    if extraction.solver not in SOLVERS:
        problems.append(Problem("option", "svd", repr(extraction.solver)[:80], f"one of {', '.join(SOLVERS)}"))
    if extraction.seed < 0:
        problems.append(Problem("option", "seed", f"{extraction.seed}", "a whole number of at least 0"))
    if problems:
        raise UsageError(problems)


def _identity(pipeline: Pipeline, base: BaseCheckpoint, tuned: BaseCheckpoint) -> Identity:
    """The family of both models."""
    nothing = Adapter("", {}, {}, Provenance("", ""))
    before, after = (
        by_config(model.config, pipeline.catalog.architectures, nothing, f"{model.name}/config.json")
        for model in (base, tuned)
    )
    if errors := errors_in((*before.problems, *after.problems)):
        raise RefusedError(errors)
    for model, found in ((base, before), (tuned, after)):
        if not found.known:
            what = f"no architecture claims model_type {model.config.get('model_type')!r}: which weights are linear?"
            remedy = "`adaptrix architectures derive MODEL` prints a file for it."
            raise refuse("architecture-unknown", model.name, what, "a known family", remedy)
    families = before.architecture.family, after.architecture.family
    if families[0] != families[1]:
        raise refuse("base-mismatch", tuned.name, f"it is {families[1]}", f"{families[0]}, as {base.name} is")
    return before


def _require_finite(found: WeightDifferences, extras: Mapping[str, Extra]) -> None:
    """Raises :class:`RefusedError` with every tensor that the result depends on and that has NaN or Inf."""
    used = {c.name: t for c in found.targets.values() for t in (c.before, c.after) if t is not None and t.nonfinite()}
    used |= {key: extra.tensor for key, extra in extras.items() if extra.tensor.nonfinite()}
    if used:
        raise RefusedError(Problem("nonfinite", name, "it holds NaN or Inf", "finite numbers") for name in used)


def _deltas(
    found: WeightDifferences, identity: Identity, extraction: Extraction, dtype: str
) -> tuple[dict[Site, LowRank], dict[Site, Loss]]:
    """The factors of every changed weight, in order, and what is lost with them, rounding included."""
    deltas, losses = {}, {}
    for site in sorted(found.targets, key=lambda site: site.order):
        X = difference(found.targets[site], identity.architecture.roles[site.role])
        with np.errstate(all="ignore"):  # what has no room in the dtype is refused when the adapter is written
            try:
                pair = best_pair(X, extraction.rank, extraction.solver, extraction.seed)
            except np.linalg.LinAlgError:
                raise RefusedError(too_large(site)) from None
            deltas[site] = from_factors(*pair, dtype)
            losses[site] = residual(X, deltas[site].A.float32(), deltas[site].B.float32())
    return deltas, losses


def _target(change: WeightDifference) -> Target:
    return Target(change.path)


def _provenance(
    models: tuple[BaseCheckpoint, BaseCheckpoint], extraction: Extraction, extras: Mapping[str, Extra]
) -> Provenance:
    """The options of the extraction, and a config that names what is kept whole."""
    names = [model.name.rstrip("/").rpartition("/")[2] for model in models]
    commits = [f"@{model.commit}" if model.commit else "" for model in models]
    modules = sorted({key.rpartition(".")[0] for key, extra in extras.items() if extra.kind == "module"})
    config: dict[str, Any] = {"peft_type": "LORA"}
    if modules:
        config["modules_to_save"] = modules
    if any(extra.kind == "bias" for extra in extras.values()):
        config["bias"] = "lora_only"
    said = f"extract --rank {extraction.rank}: {names[1]}{commits[1]} - {names[0]}{commits[0]}"
    return Provenance(uri=said, format="peft", config=MappingProxyType(config))


def _notes(
    deltas: Mapping[Site, LowRank],
    losses: Mapping[Site, Loss],
    extras: Mapping[str, Extra],
    ignored: Sequence[WeightDifference],
) -> Iterator[Problem]:
    ranks = sorted({delta.rank for delta in deltas.values()})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    least = min(losses, key=lambda site: losses[site].kept)
    whole = f"{total(losses.values()).kept:.2%} of ‖ΔW‖² kept, at least {losses[least].kept:.2%} ({least})"
    yield Problem("summary", "rank", f"{len(deltas)} weights differ; rank {span}; {whole}", severity="note")
    if extras:
        yield Problem("summary", "--save", f"{len(extras)} tensors are kept whole", severity="note")
    if ignored:
        largest = max(change.size() for change in ignored)
        names = some(kinds(ignored), 4)
        found = f"{len(ignored)} tensors that differ by up to {largest:.2g} of their norm are left out: {names}"
        yield Problem("left-out", "--ignore", found, severity="note")
