"""What the commands that make adapters of adapters share: where to write, and how to tell what it cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from adaptrix.algebra.outcome import Outcome
from adaptrix.cli.common import Voice, clean, print_json, show_problems
from adaptrix.pipeline import Workshop
from adaptrix.wording import amount

F = TypeVar("F", bound=Callable[..., Any])

_OUTPUT = (
    click.option("-o", "--out", type=click.Path(), help="File or folder to write; FOLDER/ to write into it."),
    click.option("--to", default="injection", show_default=True, metavar="FORMAT", help="injection or peft."),
    click.option("--dtype", metavar="DTYPE", help="Write bf16, fp16, fp32 or fp64."),
    click.option("--name", help="Name for the adapter. [default: made of that of the source]"),
    click.option("--force", is_flag=True, help="Replace an existing output, never the source."),
)


def output_options(function: F) -> F:
    """Adds ``-o``, ``--to``, ``--dtype``, ``--name`` and ``--force``."""
    for option in reversed(_OUTPUT):
        function = option(function)
    return function


def show_outcome(done: Outcome, voice: Voice, workshop: Workshop) -> None:
    """What was written, what was done, and what is to be said of it."""
    if voice.json:
        print_json(done.as_dict())
    elif not voice.quiet:
        conversion = done.conversion
        held = f"{conversion.tensors} tensors, {amount(conversion.nbytes)}"
        family = conversion.plan.bound.architecture.family
        click.echo(f"{click.style(clean(str(done.path)), bold=True)}  {held}, {family}")
        for note in done.notes:
            if note.severity == "note":
                click.echo(f"  {clean(note.found)}")
    told = [problem for problem in done.problems if problem not in done.notes or problem.severity != "note"]
    show_problems((*workshop.catalog.problems, *told), voice)
