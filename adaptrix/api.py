"""The public functions. Each takes a uri (a folder, a file, ``owner/name[@revision]``) as the command line does."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from adaptrix.adapter import Adapter
from adaptrix.algebra.combination import combine_adapters
from adaptrix.algebra.comparison import Comparison, compare_adapters
from adaptrix.algebra.compression import Size, resize_adapter
from adaptrix.algebra.extraction import Extraction, extract_adapter
from adaptrix.algebra.lora_svd import Solver
from adaptrix.algebra.outcome import Outcome
from adaptrix.algebra.recipe import Recipe
from adaptrix.base.vectors import BaseVectors
from adaptrix.errors import AdaptrixWarning as AdaptrixWarning
from adaptrix.errors import Problem, UsageError, warn_of
from adaptrix.fitting.maker import maker_for
from adaptrix.inspection import Inspection, summarise
from adaptrix.merging.draft import draft
from adaptrix.merging.merger import write
from adaptrix.merging.options import MergeOptions, QloraBase, prepare
from adaptrix.options import Options, Vectors
from adaptrix.pipeline import Pipeline
from adaptrix.planning.redistribute import Redistribution
from adaptrix.results import CheckReport

Uri = str | PathLike[str]


def load(uri: Uri) -> Adapter:
    """The adapter at a uri, sound in itself; whether it fits a model is for :func:`check` to say.

    Raises :class:`AdaptrixError` with every problem found.
    """
    return Pipeline().read(fspath(uri)).require_sound()


def check(adapter: Adapter | Uri, base: Uri | None = None, *, allow_nonfinite: bool = False) -> CheckReport:
    """Everything that is wrong with an adapter, alone and on ``base`` (its config's own base by default).

    What is wrong with files, of the adapter or of the base, is in the report. Raises :class:`UsageError` for a
    path or name that is none, :class:`UnreachableError` where the adapter or ``base`` cannot be reached.
    """
    return Pipeline().check(_subject(adapter), _path(base), allow_nonfinite=allow_nonfinite)


def inspect(uri: Adapter | Uri, base: Uri | None = None) -> Inspection:
    """What is in an adapter: provenance, config, shapes by role, ‖ΔW‖ by role and layer.

    Raises :class:`AdaptrixError` where there is nothing to show.
    """
    pipeline = Pipeline()
    adapter, source = (uri, None) if isinstance(uri, Adapter) else (pipeline.read(fspath(uri)), fspath(uri))
    return summarise(pipeline.bind(adapter, _path(base)), source)


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

    ``out``: the file or folder to write, or with a ``/`` at its end the folder to write it in; by default
    the adapter's name in the current folder, ``<name>.adaptrix.safetensors`` or ``<name>-peft``.
    ``layers``: ``all``, ``middle``, ``spread:K``, ``energy:K``, ``fit:K`` or a list such as ``8-23,28``; None is
    ``middle`` for an injection file made from a checkpoint, the file's own plan where one is read, and
    ``all`` for a PEFT folder. ``prune`` drops what the plan leaves out, ``dtype`` (``F32``, ``bf16``,
    ``bfloat16`` …) rounds the deltas; nothing else loses anything. ``layers="fit:K"`` chooses K layers by what they
    do on ``text``, a file, and trains their deltas in at most ``steps`` (300) with a ``seed`` (0) to do on ``base``,
    a model with its weights, what the whole adapter does; the file holds them beside the adapter's own. Needs
    ``adaptrix[torch]``; stopped, and called again, it goes on where it was. Spectral deltas become LoRA in a PEFT
    folder: exactly, or at ``rank`` if that leaves out at most ``max_error`` (0.05) of each ‖ΔW‖; the U and V that it
    takes are in the file or come from ``base``, weights and all. ``vectors``: ``include`` writes them into an
    injection file, ``omit`` leaves them out. Problems of severity ``warning`` are
    issued as :class:`AdaptrixWarning`. Raises :class:`AdaptrixError` with every problem, and then leaves
    nothing behind.
    """
    options = Options(
        to=to,
        base=_path(base),
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
        text=_path(text),
        steps=steps,
        seed=seed,
    )
    pipeline = Pipeline()
    done = pipeline.convert(_subject(uri), out, options, maker_for(options, pipeline), BaseVectors(pipeline))
    warn_of(done.problems)
    return done.path


def combine(
    adapters: Sequence[Adapter | Uri],
    weights: Sequence[float] | None = None,
    out: Uri | None = None,
    to: str = "injection",
    base: Uri | None = None,
    *,
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    drop_extras: bool = False,
    dtype: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Outcome:
    """Writes one adapter for the weighted sum of several adapters' ΔW; ``error`` of what it returns is its error.

    ``weights``: one each, by default equal shares of 1. ``method``: ``cat`` (ranks side by side: exact), ``svd`` (the
    best of ``rank``, by default the largest of the adapters' own), ``linear``, ``ties``, ``dare`` or ``dare-ties`` (as
    peft adds factors; the last three keep the share ``density`` of the numbers, 0.5 by default, and what DARE drops
    depends on ``seed``). An injection file counts as its plan has it act. Trained heads, biases and tokens are
    refused unless ``drop_extras``. The rest is as in :func:`convert`; every delta of the result acts. Raises
    :class:`AdaptrixError` with every problem, and then leaves nothing behind.
    """
    if isinstance(adapters, str | PathLike | Adapter):
        raise UsageError(Problem("option", "adapters", "one adapter", "a list of them", "As in [first, second]."))
    recipe = Recipe(None if weights is None else tuple(weights), method, rank, density, seed, drop_extras)
    subjects = [_subject(adapter) for adapter in adapters]
    options = _output(to, base, dtype, name, force=force)
    done = combine_adapters(Pipeline(), subjects, recipe, out, options)
    warn_of(done.problems)
    return done


def resize(
    adapter: Adapter | Uri,
    rank: int | None = None,
    out: Uri | None = None,
    to: str = "injection",
    base: Uri | None = None,
    *,
    energy: float | None = None,
    dtype: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Outcome:
    """Writes an adapter at another ``rank``, or at the smallest ranks that keep a share ``energy`` of each ‖ΔW‖².

    A smaller rank is the best one in the Frobenius norm, and ``error`` of what is returned says what it costs; a
    larger one changes nothing. Extras are kept as they are. The rest is as in :func:`combine`.
    """
    options = _output(to, base, dtype, name, force=force)
    done = resize_adapter(Pipeline(), _subject(adapter), Size(rank, energy), out, options)
    warn_of(done.problems)
    return done


def diff(first: Adapter | Uri, second: Adapter | Uri, base: Uri | None = None) -> Comparison:
    """How alike two adapters are, site by site: the cosine, the ratio of the norms and the distance of their ΔW.

    Raises :class:`AdaptrixError` for adapters that are of no one model.
    """
    return compare_adapters(Pipeline(), _subject(first), _subject(second), _path(base))


def extract(
    finetuned: Uri,
    base: Uri,
    rank: int = 16,
    out: Uri | None = None,
    to: str = "injection",
    *,
    svd: Solver = "auto",
    seed: int = 0,
    save: Sequence[str] = (),
    ignore: Sequence[str] = (),
    dtype: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Outcome:
    """Writes the LoRA of a ``rank`` that turns ``base`` into ``finetuned``, two models with their weights.

    ``kept`` of what is returned, and of each of its ``losses``, is the share of ‖ΔW‖² that is kept. ``svd``:
    ``exact``, ``randomised`` (with ``seed``) or what suits the sizes. Tensors that differ and are no weights of linear
    layers are refused unless a pattern of ``save`` (kept whole) or ``ignore`` (left out) names them. The rest is as
    in :func:`combine`.
    """
    extraction = Extraction(rank, svd, seed, tuple(save), tuple(ignore))
    options = _output(to, None, dtype, name, force=force)
    done = extract_adapter(Pipeline(), fspath(finetuned), fspath(base), extraction, out, options)
    warn_of(done.problems)
    return done


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

    ``base``: the whole model, a folder or ``owner/name``. ``out``: the folder to write, by default ``<name>-merged``
    in the current one. Shards, tokenizer and config are the base's; a tensor that the adapter does not change is
    the same bytes, the others are added in fp32 and rounded once, to the base's dtype or to ``dtype``. ``layers``:
    as for :func:`convert`; None is what :func:`attach` does. ``verify`` compares logits with those of the base with
    the adapter attached, and writes nothing where rounding does not explain the difference. ``qlora_base``: for
    an adapter trained on the base in NF4; ``nf4`` merges it into what NF4 leaves of the base (needs
    ``adaptrix[qlora]``), ``bf16`` into its full precision. Problems of severity ``warning`` are issued as
    :class:`AdaptrixWarning`. Raises :class:`AdaptrixError` with every problem, and then leaves nothing behind.
    """
    options = MergeOptions(layers, dtype, force, allow_nonfinite, verify, qlora_base)
    target = _path(out)
    prepare(target, options)
    done = write(draft(Pipeline(), fspath(uri), fspath(base), options), target, options)
    warn_of(done.problems)
    return done.path


def _subject(adapter: Adapter | Uri) -> Adapter | str:
    return adapter if isinstance(adapter, Adapter) else fspath(adapter)


def _output(to: str, base: Uri | None, dtype: str | None, name: str | None, *, force: bool) -> Options:
    """Options of a result whose every delta acts."""
    return Options(to=to, base=_path(base), dtype=dtype, name=name, force=force)


def _path(uri: Uri | None) -> str | None:
    return None if uri is None else fspath(uri)
