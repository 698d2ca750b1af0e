"""``adaptrix convert``."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptrix.base.vectors import BaseVectors, draws
from adaptrix.cli.choices import dtype_option, layers_option, to_option
from adaptrix.cli.common import (
    Verbosity,
    bars,
    print_json,
    show_problems,
    show_refusal,
    verbosity_options,
    working,
)
from adaptrix.destination import require_folder
from adaptrix.errors import AdaptrixError, Problem, UsageError
from adaptrix.fitting.maker import maker_for
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.planning.lowering import TOLERANCE
from adaptrix.planning.plan import Plan, make_plan
from adaptrix.results import Conversion
from adaptrix.wording import amount

if TYPE_CHECKING:
    from adaptrix.schemas.reports import ConversionJSON, ConvertJSON, UnconvertedJSON

_BASE = """Base to check against: a folder or OWNER/NAME. Its config.json is read; fit:K reads the whole base, and
    spectral deltas without their U and V the weights that they are of, where these are to be written."""
_LAYERS = """{}. [default: all; the plan of an injection file that is read, where the output can hold one]"""


@click.command()
@click.argument("sources", metavar="SRC...", type=click.Path(), nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(), help="File or folder to write; FOLDER/ to write into it.")
@to_option
@click.option("--base", type=click.Path(), metavar="MODEL", help=_BASE)
@layers_option(_LAYERS, "fit:K")
@click.option(
    "--redistribute",
    type=click.Choice(["none", "nearest"]),
    default="none",
    show_default=True,
    help="Fold the deltas of dropped layers into the nearest kept layer.",
)
@click.option("--rank", type=int, metavar="R", help="Recompress deltas above this rank (SVD).")
@click.option(
    "--max-error",
    type=float,
    metavar="SHARE",
    help=f"What --rank may leave out of ‖ΔW‖ where a LoRA is made. [default: {TOLERANCE:g}]",
)
@click.option(
    "--vectors",
    type=click.Choice(["include", "omit"]),
    help="Write spectral deltas with or without the U and V of their base. [default: as they came]",
)
@click.option("--prune", is_flag=True, help="Drop what the plan leaves out or replaces; it is lost.")
@dtype_option("Round every delta to {}; the source's own bytes are lost.")
@click.option("--text", type=click.Path(), metavar="FILE", help="Text to fit a plan on, of the adapter's kind.")
@click.option("--steps", type=int, metavar="N", help="Steps of a fit, at most. [default: 300]")
@click.option("--seed", type=int, metavar="N", help="Seed of a fit. [default: 0]")
@click.option("--name", help="Name for the adapter. [default: that of the source]")
@click.option("--force", is_flag=True, help="Replace an existing output, never the source.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through.")
@verbosity_options
def command(sources: tuple[str, ...], out: str | None, verbosity: Verbosity, **options: Any) -> int:
    """Write adapters as injection files, or for peft, mlx-lm or llama.cpp.

    \b
    SRC is a folder, a file, or OWNER/NAME[@REVISION] on the Hub:
      adaptrix convert tloen/alpaca-lora-7b
      adaptrix convert ./my-lora --base ./llama --layers all
      adaptrix convert my-lora.adaptrix.safetensors --to peft -o my-lora-again

    Everything is checked before anything is written. The file holds every tensor of the source,
    byte for byte, and the plan says which layers act. Only --prune and --dtype lose something.

    \b
    fit:K trains the deltas of the K layers that matter most on a text to act for all of them:
      adaptrix convert ./my-lora --base ./llama --layers fit:16 --text corpus.txt
    It needs adaptrix[torch] and the whole base. After Ctrl-C the same command goes on where it was.
    """
    wanted = Options(**options)
    out = _for_several(sources, out, wanted) if len(sources) > 1 else out
    pipeline = Pipeline()
    batch = _Batch(pipeline, out, wanted, verbosity)
    batch.spare(sources)
    if len(sources) > 1:
        batch.require_options()
    for source in sources:
        batch.convert(source)
    if verbosity.json:
        report: ConvertJSON = {"ok": batch.code == 0, "problems": [], "results": batch.results}
        print_json(report, pipeline.catalog.problems)
    show_problems(pipeline.catalog.problems, verbosity)
    return batch.code


def _for_several(sources: tuple[str, ...], out: str | None, options: Options) -> str | None:
    """The folder that several sources go to; a :class:`UsageError` where they would all be one output."""
    if options.name is not None:
        found, remedy = f"one name for {len(sources)} sources", "Leave it out, or convert them one at a time."
        raise UsageError(Problem("option", "name", found, remedy=remedy))
    return out if out is None else os.path.join(require_folder(out), "")


class _Batch:
    """The conversions of one run: what came of each, and where it went."""

    def __init__(self, pipeline: Pipeline, out: str | None, options: Options, verbosity: Verbosity) -> None:
        self._pipeline, self._out, self._options, self._verbosity = pipeline, out, options, verbosity
        self._taken: dict[Path, str] = {}
        self.results: list[ConversionJSON | UnconvertedJSON] = []
        self.code = 0

    def spare(self, sources: tuple[str, ...]) -> None:
        """Lets no output of the run take the place of one of its sources."""
        self._taken |= {Path(source): "this is a source of this run" for source in sources}

    def require_options(self) -> None:
        """Raises :class:`AdaptrixError` for what is wrong whatever the source is: several would each say it."""
        self._pipeline.prepare(self._out, self._options)
        maker_for(self._options, self._pipeline)

    def convert(self, source: str) -> None:
        """One source; what is wrong with it is told and does not stop the others."""
        try:
            self._pipeline.prepare(self._out, self._options)
            maker = maker_for(self._options, self._pipeline, bars(self._verbosity))
            resolver = BaseVectors(self._pipeline, bars(self._verbosity))
            report = self._pipeline.read_and_bind(source, self._options.base)  # no spinner: the Hub's client draws bars
            drawn = maker is not None or (report.bound is not None and draws(report.bound))  # a bar, so no spinner
            with nullcontext() if drawn else working(f"converting {source}", self._verbosity):
                done = self._pipeline.write(report, self._out, self._options, self._taken, maker, resolver)
        except AdaptrixError as error:
            self.code = max(self.code, error.exit_code)
            self.results.append({"source": source, "ok": False, "problems": [p.as_dict() for p in error.problems]})
            show_refusal(source, "not converted, ", error.problems, self._verbosity)
        else:
            self._taken[done.path] = f"this run has just written it, from {source}"
            self.results.append(done.as_dict())
            form = next(form for form in self._pipeline.catalog.formats if form.name == self._options.to)
            _show(done, self._verbosity, chooses="plan" in form.carries)


def _show(done: Conversion, verbosity: Verbosity, *, chooses: bool) -> None:
    """Prints what was written, and its plan; ``chooses``: the format can hold a plan that leaves layers out."""
    if not verbosity.json and not verbosity.quiet:
        held = f"{done.tensors} tensors, {amount(done.nbytes)}"
        click.echo(f"{click.style(str(done.path), bold=True)}  {held}, {done.plan.bound.architecture.family}")
        click.echo(f"  {done.plan.describe()}{_rest(done.plan, chooses=chooses)}")
    show_problems(done.problems, verbosity)


def _rest(plan: Plan, *, chooses: bool) -> str:
    """The other choices of layers, by name, and how to measure their cost."""
    if plan.complete:
        return _middle(plan) if chooses else ""
    named = " (middle-layer injection)" if plan.policy == "middle" else ""
    return f"{named}; adaptrix fidelity measures the cost, and --layers all makes every layer act"


def _middle(plan: Plan) -> str:
    """The share that the middle layers alone would keep, where it is less, and how to measure what that costs."""
    if not plan.bound.depths or plan.policy != "all":
        return ""
    middle = make_plan(plan.bound, "middle")
    if not middle.idle or middle.retained is None:
        return ""
    kept = f"--layers middle (middle-layer injection) keeps {middle.retained:.1%} of it"
    return f"; {kept}, and adaptrix fidelity measures the cost"
