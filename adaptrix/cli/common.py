"""The parts that all commands share: options, the display of problems, the output of JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from adaptrix.algebra.outcome import Outcome
from adaptrix.cli.choices import dtype_option, to_option
from adaptrix.cli.choices import offering as offering
from adaptrix.cli.reached import Reached, command_name
from adaptrix.errors import AdaptrixError, AdaptrixWarning, Problem, errors_in
from adaptrix.grouping import grouped
from adaptrix.pipeline import Pipeline
from adaptrix.schemas import VERSION
from adaptrix.schemas.values import plain
from adaptrix.wording import amount

F = TypeVar("F", bound=Callable[..., Any])

_LOOKS = {"error": "red", "warning": "yellow", "note": "cyan"}
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verbosity:
    """The amount of output: ``json`` for machines, ``quiet`` for errors only, ``verbose`` for everything."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def __or__(self, other: Verbosity) -> Verbosity:
        return Verbosity(self.json or other.json, self.quiet or other.quiet, self.verbose or other.verbose)

    @classmethod
    def of(cls, args: Sequence[str]) -> Verbosity:
        """The verbosity that a command line asks for, where it was not parsed to its end."""
        return cls("--json" in args, verbose="-v" in args or "--verbose" in args)


whole_base_option = click.option(
    "--base",
    type=click.Path(),
    metavar="MODEL",
    required=True,
    help="The whole base: a folder or OWNER/NAME, weights and all.",
)


base_option = click.option(
    "--base",
    type=click.Path(),
    metavar="MODEL",
    help="Base to check against: a folder or OWNER/NAME. Only its config.json is read.",
)


def verbosity_options(function: F) -> F:
    """Adds ``--json``, ``-q`` and ``-v``; the command takes them, with those of its group, as one ``verbosity``."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on standard output.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Say everything, and list every problem.")
    def wrapper(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        context = click.get_current_context()
        if isinstance(reached := context.find_root().obj, Reached):
            reached.command = command_name(context)
        verbosity = Verbosity(as_json, quiet, verbose) | (context.find_object(Verbosity) or Verbosity())
        context.obj = verbosity  # a subcommand's context inherits it
        if verbosity.quiet or verbosity.json or not sys.stderr.isatty():
            from adaptrix.sources import hub

            hub.quiet()
        if os.environ.get("NO_COLOR"):
            context.color = False
        with _python_warnings(verbosity):
            return function(*args, verbosity=verbosity, **options)

    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    if hasattr(function, "__click_params__"):
        wrapper.__click_params__ = function.__click_params__ + wrapper.__click_params__  # type: ignore[attr-defined]  # click keeps options there
    return wrapper  # type: ignore[return-value]  # the wrapper takes what F takes, and three options more


@contextmanager
def _python_warnings(verbosity: Verbosity) -> Iterator[None]:
    """Shows a warning of ours that comes up inside the work as a problem is shown; no warning at all under ``-q``."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, AdaptrixWarning) or verbosity.json:
                before(message, category, *place, **more)
            else:
                click.echo(
                    f"{click.style('warning:', fg=_LOOKS['warning'], bold=True)} {clean(str(message))}", err=True
                )

        warnings.showwarning = show
        if verbosity.quiet:
            warnings.simplefilter("ignore")
        yield


def print_json(report: Mapping[str, Any], problems: Iterable[Problem] = ()) -> None:
    """One JSON document on standard output: what a command found, under the version and the command's name.

    ``problems`` of the run are put before those of the report. What has no JSON form (an infinity) becomes null.
    """
    said = [*(problem.as_dict() for problem in problems), *report["problems"]]
    _print_document(command_name(click.get_current_context()), {**report, "problems": said})


def _print_document(command: str | None, report: Mapping[str, Any]) -> None:
    """JSON in ASCII, with no control character: names in files are untrusted, and a terminal acts on them."""
    header = {"version": VERSION, "command": command, "ok": report["ok"], "problems": report["problems"]}
    text = json.dumps(plain({**header, **report}), indent=2, allow_nan=False)
    click.echo(text.replace("\x7f", "\\u007f"))  # DEL is the one control character that json leaves as it is


def show_problems(problems: Iterable[Problem], verbosity: Verbosity) -> None:
    """Problems on standard error, errors first, those that differ in their place alone as one.

    Each by itself, with its code, and the long tail only under ``-v``.
    """
    if verbosity.json:
        return
    order = {"error": 0, "warning": 1, "note": 2}
    wanted = [p for p in problems if p.severity == "error" or not verbosity.quiet]
    ordered = sorted(wanted, key=lambda problem: order[problem.severity])
    if not verbosity.verbose:
        ordered = grouped(ordered)
    shown = ordered if verbosity.verbose else ordered[:_SHOWN]
    for problem in shown:
        label = click.style(f"{problem.severity}:", fg=_LOOKS[problem.severity], bold=True)
        code = f" [{problem.code}]" if verbosity.verbose else ""
        click.echo(f"{label} {clean(problem.in_words())}{code}", err=True)
    if len(shown) < len(ordered):
        click.echo(f"… and {len(ordered) - len(shown)} more: add -v to see them all", err=True)


def show_refusal(source: str, verdict: str, problems: Sequence[Problem], verbosity: Verbosity) -> None:
    """Shows the problems of a source, under its name where they do not mention it."""
    count = len(errors_in(problems))
    if not verbosity.json and (count > 1 or not any(source in problem.where for problem in problems)):
        verdict += f"{count} error{'s' if count > 1 else ''}"
        click.echo(f"{click.style(clean(source), bold=True)}: {verdict}", err=True)
    show_problems(problems, verbosity)


def show_failure(error: AdaptrixError, verbosity: Verbosity, command: str | None) -> None:
    """An error that ends a command."""
    if verbosity.json:
        _print_document(command, {"ok": False, "problems": [problem.as_dict() for problem in error.problems]})
    else:
        show_problems(error.problems, verbosity)


def clean(text: str) -> str:
    """Text without control characters: names in files are untrusted, and a terminal acts on them."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def working(what: str, verbosity: Verbosity) -> AbstractContextManager[Any]:
    """A spinner on a terminal while something may take long; nothing elsewhere.

    Never around a fetch: the Hub's client draws bars of its own on the same terminal.
    """
    if verbosity.quiet or verbosity.json or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(clean(what))


def bars(
    verbosity: Verbosity, *, in_bytes: bool = False
) -> Callable[[str, int], AbstractContextManager[Callable[[int], object]]]:
    """A bar for each thing that is counted, on a terminal; nothing elsewhere."""

    @contextmanager
    def shown(what: str, total: int) -> Iterator[Callable[[int], object]]:
        if verbosity.quiet or verbosity.json or not sys.stderr.isatty():
            yield lambda _count: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        done = DownloadColumn() if in_bytes else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(clean(what), total=total)
            yield lambda count: progress.advance(task, count)

    return shown


_OUTPUT = (
    click.option("-o", "--out", type=click.Path(), help="File or folder to write; FOLDER/ to write into it."),
    to_option,
    dtype_option("Write {}."),
    click.option("--name", help="Name for the adapter. [default: made of that of the source]"),
    click.option("--force", is_flag=True, help="Replace an existing output, never the source."),
)


def output_options(function: F) -> F:
    """Adds ``-o``, ``--to``, ``--dtype``, ``--name`` and ``--force``."""
    for option in reversed(_OUTPUT):
        function = option(function)
    return function


def show_outcome(done: Outcome, verbosity: Verbosity, pipeline: Pipeline) -> None:
    """Shows the output that was written, the notes on how, and the problems."""
    if verbosity.json:
        print_json(done.as_dict(), pipeline.catalog.problems)
    elif not verbosity.quiet:
        conversion = done.conversion
        held = f"{conversion.tensors} tensors, {amount(conversion.nbytes)}"
        family = conversion.plan.bound.architecture.family
        click.echo(f"{click.style(clean(str(done.path)), bold=True)}  {held}, {family}")
        for note in done.notes:
            if note.severity == "note":
                click.echo(f"  {clean(note.found)}")
    others = [problem for problem in done.problems if problem not in done.notes or problem.severity != "note"]
    show_problems((*pipeline.catalog.problems, *others), verbosity)
