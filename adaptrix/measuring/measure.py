"""``adaptrix.fidelity``: plans of an adapter measured on a text, beside the whole adapter."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.adapter import Adapter
from adaptrix.base.model import (
    BaseModel,
    base_model_at,
    base_model_of,
    context_of,
    placement,
    require_causal,
    require_in_vocabulary,
)
from adaptrix.binding.bind import BoundAdapter, bind, nonfinite
from adaptrix.binding.identify import by_config
from adaptrix.binding.translate import in_own_names
from adaptrix.errors import Problem, RefusedError, UsageError, errors_in
from adaptrix.measuring.invoked import invoked
from adaptrix.measuring.options import FidelityOptions as FidelityOptions
from adaptrix.measuring.options import require_options
from adaptrix.measuring.policies import plans, shadowed
from adaptrix.measuring.report import FidelityReport, Row
from adaptrix.measuring.rows import Measurement
from adaptrix.measuring.text import Text, Tokens, read_text, require_enough, tokens_of, windows
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import Plan, powerless
from adaptrix.progress import Display, quiet
from adaptrix.runtime.swapping import why_whole

Uri = str | PathLike[str]
_WINDOW = 512


def fidelity(
    source: Adapter | Uri,
    base: Uri | nn.Module,
    text: Uri | Tensor | Sequence[int],
    layers: Sequence[str] = (),
    *,
    tokenizer: Any = None,
    window: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
) -> FidelityReport:
    """Measures plans of an adapter on a text: KL from the whole adapter, agreement, perplexity, speed, reuse.

    - ``source``: an adapter, or its path or uri.
    - ``base``: a folder or ``owner/name`` to load, or a causal language model, which is left as it is.
    - ``text``: a file in UTF-8, or tokens ``[n]``.
    - ``layers``: policies as for :func:`convert`, ``own`` for the plan of an injection file; by default a few of each.
      The whole adapter and the base alone are always measured.
    - ``tokenizer``: needed where ``base`` is a model and ``text`` a file.
    - ``window``, ``stride``: tokens of a window, and from one to the next; every token but the first counts once. By
      default 512, or the positions of the base if these are fewer, and half of it.
    - ``seed``: draws the intervals.
    - ``dtype``, ``device``: of a base that is loaded, by default fp32 and the accelerator if there is one.

    Raises :class:`AdaptrixError` with every problem.
    """
    if isinstance(layers, str):
        raise UsageError(Problem("option", "layers", repr(layers)[:60], "a list of policies", f"[{layers!r}] is one."))
    options = FidelityOptions(tuple(layers), window, stride, seed, dtype, device)
    return measure(Pipeline(), source, base, text, options, tokenizer)


def measure(
    pipeline: Pipeline,
    source: Adapter | Uri,
    base: Uri | nn.Module,
    text: Uri | Tensor | Sequence[int],
    options: FidelityOptions,
    tokenizer: Any = None,
    display: Display = quiet,
) -> FidelityReport:
    """The work of :func:`fidelity`; all that can be checked is checked before the weights of a base are loaded.

    ``display`` opens a bar over the passes; other arguments are those of :func:`fidelity`.
    """
    require_options(options)
    read = read_text(Path(os.path.expanduser(text))) if isinstance(text, (str, PathLike)) else None
    base_model = _base_model(base, pipeline, options, tokenizer)
    bound = _bound(source if isinstance(source, Adapter) else pipeline.read(fspath(source)), base_model, pipeline)
    chosen = plans(bound, options.layers)
    tokens = _tokens(text) if read is None else tokens_of(read, base_model.tokenizer())
    require_enough(tokens.ids, read.name if read else "text")
    with base_model.model() as model:
        bench = _bench(model, tokens, base_model, options)
        about = [*_about(model, bench), *invoked(bound.adapter, bench.windows)]
        rows = bench.rows(chosen, display)
        said = [*about, *(p for policy in options.layers for p in powerless(chosen[policy]))]
        said += [*shadowed(bound, chosen), *_without_effect(rows, bound.adapter.name)]
        if read is not None:
            said += _fitted_on(read, chosen)
        return FidelityReport(
            source=str(bound.adapter.provenance.uri if isinstance(source, Adapter) else fspath(source)),
            base=base_model.name,
            adapter=bound,
            text={} if read is None else {"file": read.name, "sha256": read.sha256},
            tokens=sum(window.counted for window in bench.windows),
            windows=len(bench.windows),
            window=bench.length,
            stride=bench.stride,
            seed=options.seed,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            depth=sum(bound.depths.values()),
            rows=rows,
            problems=(*bound.problems, *said),
        )


def _without_effect(rows: Sequence[Row], name: str) -> Iterator[Problem]:
    """A warning where the model answers the same without the adapter: then every plan looks as good as the whole."""
    if rows[-1].kl.value == 0 and rows[-1].agreement.value == 1:
        found = "on this text the model answers without it as with all of it, so no figure says anything of a plan"
        remedy = "Text does not reach a tower of pictures or sound, nor modules that the model never calls."
        yield Problem("measurement-limit", name, found, "an adapter that acts on text", remedy, severity="warning")


def _base_model(base: object, pipeline: Pipeline, options: FidelityOptions, tokenizer: Any) -> BaseModel:
    """The base to measure on. Raises :class:`UsageError` where ``base`` cannot be one."""
    if isinstance(base, nn.Module):
        _require_unplaced(options)
        return base_model_of(base, tokenizer)
    if isinstance(base, (str, PathLike)):
        return base_model_at(os.fsdecode(base), pipeline, placement(options.device, options.dtype), tokenizer)
    expected = "a folder, owner/name, or a transformers model"
    raise UsageError(Problem("option", "base", f"a {type(base).__name__}", expected))


def _require_unplaced(options: FidelityOptions) -> None:
    """Raises :class:`UsageError` for a device or a dtype where the model is there already."""
    asked = {"dtype": options.dtype, "device": options.device}
    if problems := [
        Problem("option", name, f"{value!r} for a model that is loaded", "the model as it is", f"model.to({value!r})")
        for name, value in asked.items()
        if value is not None
    ]:
        raise UsageError(problems)


def _bound(adapter: Adapter, base_model: BaseModel, pipeline: Pipeline) -> BoundAdapter:
    """The adapter bound by the base's config. Raises :class:`RefusedError` where it does not fit or has NaN or Inf."""
    known = pipeline.catalog.architectures
    adapter = in_own_names(adapter, known, base_model.config)
    bound = bind(adapter, by_config(base_model.config, known, adapter, base_model.name))
    bad = (replace(problem, remedy="It is damaged: nothing can be measured.") for problem in nonfinite(bound))
    if errors := errors_in(dict.fromkeys((*bound.problems, *bad))):
        raise RefusedError(errors)
    return bound


def _tokens(ids: Any) -> Tokens:
    """Tokens that were given. Raises :class:`UsageError` unless they are whole numbers in a row."""
    found = torch.as_tensor(ids)
    if found.dim() != 1 or (len(found) and found.is_floating_point()):
        shown, remedy = f"{found.dtype} {list(found.shape)}", "tokenizer(text).input_ids"
        raise UsageError(Problem("option", "text", shown, "a file's path, or tokens [n]", remedy))
    return Tokens(found.long().cpu())


def _bench(model: Any, tokens: Tokens, base_model: BaseModel, options: FidelityOptions) -> Measurement:
    """The text cut into windows that the model has positions for, once model and text are known to be measurable."""
    limit = context_of(model)
    length = options.window or min(_WINDOW, limit or _WINDOW)
    if limit is not None and length > limit:
        found = f"{length} tokens, and {base_model.name} has positions for {limit}"
        raise UsageError(Problem("option", "window", found, f"at most {limit}"))
    stride = length // 2 if options.stride is None else options.stride
    require_in_vocabulary(model, tokens.ids, base_model.name)
    require_causal(model, tokens.ids, base_model.name)
    return Measurement(model, tokens, windows(tokens.ids, length, stride), length, stride, options.seed)


def _fitted_on(text: Text, chosen: Mapping[str, Plan]) -> Iterator[Problem]:
    """A warning for a plan that was fitted on the text that it is measured on."""
    for name, plan in chosen.items():
        if plan.fit is not None and plan.fit.text == text.sha256:
            found = f"it was fitted on {text.name}, where it does better than elsewhere"
            yield Problem("measurement-limit", name, found, "another text", severity="warning")


def _about(model: Any, bench: Measurement) -> Iterator[Problem]:
    """Notes on what the figures leave out: a text of one short window, and caches that a swap cannot reuse."""
    read = len(bench.tokens.ids)
    if read < bench.length:
        found = f"{read} tokens, fewer than a window of {bench.length}: one shorter window, and no intervals"
        yield Problem("measurement-limit", "text", found, severity="note")
    if why := why_whole(model):
        yield Problem("measurement-limit", "reused", f"a swap reads the prompt again: {why}", severity="note")
