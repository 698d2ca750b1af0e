"""``adaptrix merge``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from adaptrix.cli.choices import dtype_option, layers_option
from adaptrix.cli.common import Verbosity, bars, print_json, show_problems, verbosity_options
from adaptrix.cli.whole_base import base_argument, one_base
from adaptrix.errors import errors_in
from adaptrix.merging.draft import draft
from adaptrix.merging.merger import MergedModel, write
from adaptrix.merging.options import MergeOptions, prepare
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import MODEL_FLOATS
from adaptrix.wording import amount

if TYPE_CHECKING:
    from adaptrix.schemas.reports import MergeJSON

_LAYERS = "{}. [default: the plan of an injection file; all of a PEFT checkpoint]"


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@base_argument()
@click.option("-o", "--out", type=click.Path(), help="Folder to write. [default: NAME-merged here]")
@layers_option(_LAYERS)
@dtype_option("Round the whole model to {}.", MODEL_FLOATS)
@click.option(
    "--verify", is_flag=True, help="Compare its logits with the attached adapter's; write it only if they agree."
)
@click.option(
    "--qlora-base",
    type=click.Choice(["bf16", "nf4"]),
    help="For an adapter trained on a base in NF4: merge into what NF4 leaves of it, or into its full precision.",
)
@click.option("--force", is_flag=True, help="Replace a merged model, never the base or the adapter.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through.")
@verbosity_options
def command(
    source: str, positional: str | None, base: str | None, out: str | None, verbosity: Verbosity, **options: Any
) -> int:
    """Write a base with an adapter merged into it, as a folder that transformers loads.

    \b
    SRC is an adapter: a folder, a file, or OWNER/NAME[@REVISION] on the Hub:
      adaptrix merge ./my-lora ./llama -o ./llama-mine
      adaptrix merge ./my-lora --base ./llama --verify

    The base's shards are written again, a tensor at a time: what the adapter does not change byte for byte,
    what it changes in fp32 and rounded once. To undo a merge, keep the base: subtracting gives other numbers.
    Needs adaptrix[torch].
    """
    base, wanted = one_base(positional, base), MergeOptions(**options)
    pipeline = Pipeline()
    prepare(out, wanted)
    made = draft(pipeline, source, base, wanted, bars(verbosity))  # no spinner: the Hub's client draws bars
    done = write(made, out, wanted, partial(bars(verbosity, in_bytes=True), f"merging {source}"))
    if verbosity.json:
        print_json(_result(source, base, done), pipeline.catalog.problems)
    else:
        _show(done, verbosity)
    show_problems((*pipeline.catalog.problems, *done.problems), verbosity)
    return 1 if errors_in(done.problems) else 0


def _result(source: str, base: str, done: MergedModel) -> MergeJSON:
    return {
        "source": source,
        "base": base,
        "ok": not errors_in(done.problems),
        "path": str(done.path),
        "changed": done.changed,
        "tensors": done.tensors,
        "bytes": done.nbytes,
        "adapter": done.plan.bound.as_dict(),
        "plan": done.plan.as_dict(),
        "agreement": None if done.agreement is None else done.agreement.as_dict(),
        "problems": [problem.as_dict() for problem in done.problems],
    }


def _show(done: MergedModel, verbosity: Verbosity) -> None:
    if verbosity.quiet:
        return
    held = f"{done.changed} of {done.tensors} tensors changed, {amount(done.nbytes)}"
    click.echo(f"{click.style(str(done.path), bold=True)}  {held}, {done.plan.bound.architecture.family}")
    click.echo(f"  {done.plan.describe()}")
    if done.agreement:
        against = f"against the base with the adapter attached, plan {done.plan.policy}"
        click.echo(f"  {click.style('verified', fg='green')} {against}: {done.agreement}")
