"""The public functions. Each takes a uri (a folder, a file, ``owner/name[@revision]``) as the command line does."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from adaptrix.adapter import Adapter
from adaptrix.base.vectors import BaseVectors
from adaptrix.errors import AdaptrixWarning as AdaptrixWarning
from adaptrix.errors import warn_of
from adaptrix.fitting.maker import maker_for
from adaptrix.inspection import Inspection, summarise
from adaptrix.memory import enough_memory
from adaptrix.merging.draft import draft
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions, QloraBase, prepare
from adaptrix.options import Options, Vectors
from adaptrix.pipeline import Pipeline
from adaptrix.planning.redistribute import Redistribution
from adaptrix.results import CheckReport

Uri = str | PathLike[str]


@enough_memory("adaptrix.load")
def load(uri: Uri) -> Adapter:
    """The adapter at a uri, sound in itself; :func:`check` says whether it fits a model.

    - ``uri``: a folder, a file, or ``owner/name[@revision]``.

    Raises :class:`AdaptrixError` with every problem found.
    """
    return Pipeline().read(fspath(uri)).require_sound()


@enough_memory("adaptrix.check")
def check(adapter: Adapter | Uri, base: Uri | None = None, *, allow_nonfinite: bool = False) -> CheckReport:
    """Everything that is wrong with an adapter, alone and on ``base``.

    - ``adapter``: an adapter, or its path or uri.
    - ``base``: a folder, a ``config.json`` or ``owner/name``, of which only the config is read; by default the base
      that the adapter names, where it can be reached.
    - ``allow_nonfinite``: do not look for NaN and Inf in the numbers; False by default.

    Problems of files, the adapter's and the base's, are in the report. Raises :class:`UsageError` for a missing
    path or an invalid name, :class:`UnreachableError` where the adapter or ``base`` cannot be reached.
    """
    return Pipeline().check(subject_of(adapter), path_of(base), allow_nonfinite=allow_nonfinite)


@enough_memory("adaptrix.inspect")
def inspect(uri: Adapter | Uri, base: Uri | None = None) -> Inspection:
    """The contents of an adapter: provenance, config, shapes by role, ‖ΔW‖ by role and layer.

    - ``uri``: an adapter, or its path or uri.
    - ``base``: as for :func:`check`: the family and the dims come from its config.

    Raises :class:`AdaptrixError` where there is nothing to show.
    """
    pipeline = Pipeline()
    adapter, source = (uri, None) if isinstance(uri, Adapter) else (pipeline.read(fspath(uri)), fspath(uri))
    return summarise(pipeline.bind(adapter, path_of(base)), source)


@enough_memory("adaptrix.convert")
def convert(
    uri: Adapter | Uri,
    out: Uri | None = None,
    to: str = "injection",
    base: Uri | None = None,
    layers: str | None = None,
    *,
    redistribute: Redistribution = "none",
    rank: int | None = None,
    prune: bool = False,
    max_error: float | None = None,
    vectors: Vectors | None = None,
    dtype: str | None = None,
    name: str | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
    text: Uri | None = None,
    steps: int | None = None,
    seed: int | None = None,
) -> Path:
    """Writes an adapter, or the one at ``uri``, as an injection file or a PEFT folder and returns its path.

    For example ``convert("./my-lora", "out/", layers="energy:8", dtype="bf16")``.

    - ``uri``: an adapter, or its path or uri.
    - ``out``: the file or folder to write, or with a ``/`` at its end the folder to write it in; by default the
      adapter's name in the current folder, ``<name>.adaptrix.safetensors`` or ``<name>-peft``.
    - ``to``: the format to write, ``injection`` by default, ``peft``, or one of a plugin's.
    - ``base``: the model that shapes are checked against, as for :func:`check`. ``fit:K`` and missing singular vectors
      take its weights too.
    - ``layers``: ``all``, ``middle``, ``spread:K``, ``energy:K``, ``fit:K`` or a list such as ``8-23,28``. By default
      the plan of the injection file that is read, and ``all`` otherwise, and for a PEFT folder.
      ``fit:K`` chooses K layers by their effect on ``text`` and trains their deltas to do on ``base`` what
      the whole adapter does; the file holds them beside the adapter's own. It needs ``adaptrix[torch]``, and continues
      where it was stopped when it is called again.
    - ``redistribute``: ``nearest`` adds the deltas of dropped layers to the nearest kept layer; ``none`` by default.
    - ``rank``: the largest rank of a delta that acts, one above it is recompressed; by default ranks stay. Deltas in
      another parametrisation (LoHa, LoKr, VeRA …) become LoRAs of it, exact ones where it is at least that of ΔW.
      Spectral deltas become LoRA in a PEFT folder: exactly, or at this rank. The U and V that this takes are in the
      file or are computed from ``base``.
    - ``prune``: drop what the plan leaves out or replaces; False by default.
    - ``max_error``: the share that ``rank`` may leave out of each ‖ΔW‖ that becomes a LoRA, from 0 to 1; 0.05 by
      default.
    - ``vectors``: ``include`` writes the U and V of spectral deltas into an injection file, ``omit`` leaves them out;
      by default they stay as they were read.
    - ``dtype``: rounds the deltas to ``F32``, ``bf16``, ``bfloat16`` …; by default each keeps its own.
    - ``name``: of the adapter, by default the source's.
    - ``force``: replace an existing output, never the source; False by default.
    - ``allow_nonfinite``: write NaN and Inf; False by default.
    - ``text``, ``steps``, ``seed``: for ``fit:K`` alone: the path of the text, which it requires, the most steps of
      training, 300 by default, and the seed, 0 by default.

    An injection file keeps every trained number but those that ``prune`` drops and ``dtype`` rounds. Problems of
    severity ``warning`` are issued as :class:`AdaptrixWarning`. Raises :class:`AdaptrixError` with every problem, and
    then leaves nothing behind.
    """
    options = Options(
        to=to,
        base=path_of(base),
        layers=layers,
        redistribute=redistribute,
        rank=rank,
        prune=prune,
        max_error=max_error,
        vectors=vectors,
        dtype=dtype,
        name=name,
        force=force,
        allow_nonfinite=allow_nonfinite,
        text=path_of(text),
        steps=steps,
        seed=seed,
    )
    pipeline = Pipeline()
    done = pipeline.convert(subject_of(uri), out, options, maker_for(options, pipeline), BaseVectors(pipeline))
    warn_of(done.problems)
    return done.path


@enough_memory("adaptrix.merge")
def merge(
    uri: Uri,
    base: Uri,
    out: Uri | None = None,
    layers: str | None = None,
    *,
    dtype: str | None = None,
    verify: bool = False,
    qlora_base: QloraBase | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
) -> Path:
    """Writes ``base`` with the adapter at ``uri`` merged into it, and returns the folder. Needs ``adaptrix[torch]``.

    For example ``merge("./my-lora", "./llama", "./llama-merged", dtype="bf16", verify=True)``.

    - ``uri``: the path or uri of the adapter.
    - ``base``: the whole model, a folder or ``owner/name``. Its shards, tokenizer and config are kept.
    - ``out``: the folder to write, by default ``<name>-merged`` in the current one.
    - ``layers``: a policy as for :func:`convert`; by default what :func:`attach` does.
    - ``dtype``: of the result, by default each tensor's own in the base: then a tensor that the adapter does not change
      keeps its bytes. Changed ones are added in fp32 and rounded once.
    - ``verify``: compare logits with those of the base with the adapter attached, and write nothing where rounding does
      not explain the difference; False by default.
    - ``qlora_base``: for an adapter trained on the base in NF4: ``nf4`` merges it into the dequantised base (needs
      ``adaptrix[qlora]``), ``bf16`` into its full precision. By default the base is taken as stored.
    - ``force``: replace an earlier merged model, never the base or the adapter; False by default.
    - ``allow_nonfinite``: merge NaN and Inf; False by default.

    Warnings and errors are as in :func:`convert`.
    """
    options = MergeOptions(layers, dtype, force, allow_nonfinite, verify, qlora_base)
    target = path_of(out)
    prepare(target, options)
    done = write(draft(Pipeline(), fspath(uri), fspath(base), options), target, options)
    warn_of(done.problems)
    return done.path


def subject_of(adapter: Adapter | Uri) -> Adapter | str:
    """An adapter, or its uri as text."""
    return adapter if isinstance(adapter, Adapter) else fspath(adapter)


def path_of(uri: Uri | None) -> str | None:
    """A uri as text."""
    return None if uri is None else fspath(uri)
