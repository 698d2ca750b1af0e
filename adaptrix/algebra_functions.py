"""The public functions of several adapters or models: combine, resize, diff, extract. A uri is as in `adaptrix.api`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath

from adaptrix.adapter import Adapter
from adaptrix.algebra.combination import combine_adapters
from adaptrix.algebra.comparison import Comparison, compare_adapters
from adaptrix.algebra.compression import Size, resize_adapter
from adaptrix.algebra.extraction import Extraction, extract_adapter
from adaptrix.algebra.lora_svd import Solver
from adaptrix.algebra.outcome import Outcome
from adaptrix.algebra.recipe import Recipe
from adaptrix.api import Uri, path_of, subject_of
from adaptrix.errors import Problem, UsageError, warn_of
from adaptrix.memory import enough_memory
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline


@enough_memory("adaptrix.combine")
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

    For example ``combine(["./math", "./code"], [0.7, 0.3], method="svd", rank=16)``.

    - ``adapters``: adapters of one model, or their paths or uris. An injection file counts as its plan has it act.
    - ``weights``: a finite number other than 0 for each, by default equal shares of 1.
    - ``out``, ``to``, ``name``, ``force``: as for :func:`convert`; the name is by default the adapters' joined by
      ``+``.
    - ``base``: the model that shapes are checked against, as for :func:`check`.
    - ``method``: ``cat`` (ranks side by side: exact) by default, ``svd`` (the best sum of ``rank``), ``linear``,
      ``ties``, ``dare`` or ``dare-ties`` (as peft adds factors).
    - ``rank``: of ``svd`` alone, by default the largest of the adapters' own.
    - ``density``: the share of the numbers that the last three methods keep, above 0 and at most 1; 0.5 by default.
    - ``seed``: of the numbers that ``dare`` and ``dare-ties`` drop; 0 by default.
    - ``drop_extras``: leave out trained heads, biases and tokens, which are refused by default.
    - ``dtype``: of the result, by default the adapters' own where their numbers stay as they are, else fp32 or more.

    Every delta of the result acts. Warnings and errors are as in :func:`convert`.
    """
    if isinstance(adapters, str | PathLike | Adapter):
        raise UsageError(Problem("option", "adapters", "one adapter", "a list of them", "As in [first, second]."))
    recipe = Recipe(None if weights is None else tuple(weights), method, rank, density, seed, drop_extras)
    subjects = [subject_of(adapter) for adapter in adapters]
    options = _output(to, base, dtype, name, force=force)
    done = combine_adapters(Pipeline(), subjects, recipe, out, options)
    warn_of(done.problems)
    return done


@enough_memory("adaptrix.resize")
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

    - ``adapter``: an adapter, or its path or uri.
    - ``rank``: of every delta, at least 1. A smaller one gives the best approximation in the Frobenius norm, and
      ``error`` of what is returned is its relative error; a larger one changes nothing. Either it or ``energy`` is
      required.
    - ``energy``: the share to keep, above 0 and at most 1.
    - ``out``, ``to``, ``name``, ``force``: as for :func:`convert`.
    - ``base``: the model that shapes are checked against, as for :func:`check`.
    - ``dtype``: of the result, by default each delta's own.

    Extras are kept as they are. Every delta of the result acts. Warnings and errors are as in :func:`convert`.
    """
    options = _output(to, base, dtype, name, force=force)
    done = resize_adapter(Pipeline(), subject_of(adapter), Size(rank, energy), out, options)
    warn_of(done.problems)
    return done


@enough_memory("adaptrix.diff")
def diff(first: Adapter | Uri, second: Adapter | Uri, base: Uri | None = None) -> Comparison:
    """A comparison of two adapters, site by site: the cosine, the ratio of the norms and the distance of their ΔW.

    - ``first``, ``second``: adapters, or their paths or uris.
    - ``base``: the model that shapes are checked against, as for :func:`check`.

    Warnings are as in :func:`adaptrix.convert`. Raises :class:`AdaptrixError` for adapters of different models.
    """
    done = compare_adapters(Pipeline(), subject_of(first), subject_of(second), path_of(base))
    warn_of(done.problems)
    return done


@enough_memory("adaptrix.extract")
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
    """Writes the LoRA of a ``rank`` that turns ``base`` into ``finetuned``, as nearly as the rank allows.

    - ``finetuned``, ``base``: two models of one family and size with their weights, folders or ``owner/name``.
    - ``rank``: of every delta, 16 by default; a weight with a smaller side gets that.
    - ``out``, ``to``, ``force``: as for :func:`convert`.
    - ``svd``: ``exact``, ``randomised``, or by default ``auto``, which chooses by the sizes.
    - ``seed``: of the randomised method; 0 by default.
    - ``save``, ``ignore``: patterns of the names of tensors that differ and are not weights of linear layers: kept
      whole, or left out. Such tensors are refused unless a pattern names them.
    - ``dtype``: of the result, fp32 by default.
    - ``name``: of the adapter, by default ``<finetuned>-lora``.

    ``kept`` of what is returned, and of each of its ``losses``, is the share of ‖ΔW‖² that is kept. Every delta of the
    result acts. Warnings and errors are as in :func:`convert`.
    """
    extraction = Extraction(rank, svd, seed, tuple(save), tuple(ignore))
    options = _output(to, None, dtype, name, force=force)
    done = extract_adapter(Pipeline(), fspath(finetuned), fspath(base), extraction, out, options)
    warn_of(done.problems)
    return done


def _output(to: str, base: Uri | None, dtype: str | None, name: str | None, *, force: bool) -> Options:
    """Options of a result whose every delta acts."""
    return Options(to=to, base=path_of(base), dtype=dtype, name=name, force=force)
