"""``adaptrix fidelity``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from adaptrix.cli.choices import dtype_option, layers_option
from adaptrix.cli.common import Verbosity, bars, clean, print_json, show_problems, verbosity_options
from adaptrix.cli.whole_base import base_argument, one_base
from adaptrix.errors import errors_in
from adaptrix.measuring.options import FidelityOptions, require_measurable
from adaptrix.optional import require
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import MODEL_FLOATS

if TYPE_CHECKING:
    from adaptrix.measuring.bootstrap import Estimate
    from adaptrix.measuring.report import FidelityReport, Row

_LAYERS = """A plan to measure: {}; own, and fit:K, are those of an injection file. May be given several times.
    [default: a few of each]"""
_COLUMNS = (
    *("plan", "layers", "kept", "‖ΔW‖²", "KL", "95 %", "top-1"),
    *("perplexity", "bits/byte", "tokens/s", "reused"),
)
_WIDE, _FIRST = 112, 7  # columns of a terminal that has room for all, and how many go into the first of two tables


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@base_argument()
@click.option(
    "--text", type=click.Path(), metavar="FILE", required=True, help="A text to measure on, in UTF-8, of any length."
)
@layers_option(_LAYERS, "fit:K", "own", multiple=True)
@click.option("--window", type=int, metavar="TOKENS", help="Tokens read at once. [default: 512, or all the base has]")
@click.option("--stride", type=int, metavar="TOKENS", help="From one window to the next. [default: half a window]")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the intervals.")
@dtype_option("Load the base in {}. [default: fp32]", MODEL_FLOATS)
@click.option("--device", metavar="DEVICE", help="Where to compute. [default: the accelerator, if there is one]")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg|png",
    help="Draw KL against layers kept to a file (needs adaptrix[plot]).",
)
@click.option("--force", is_flag=True, help="Replace an existing plot.")
@verbosity_options
def command(
    source: str,
    positional: str | None,
    base: str | None,
    text: str,
    plot: Path | None,
    force: bool,
    verbosity: Verbosity,
    **options: Any,
) -> int:
    """Measure what each layer plan of an adapter costs, on a text of yours.

    \b
    SRC is an adapter: a folder, a file, or OWNER/NAME[@REVISION] on the Hub:
      adaptrix fidelity ./my-lora --base ./llama --text mine.txt
      adaptrix fidelity ./my-lora --base ./llama --text mine.txt --layers middle --layers energy:8

    The model with a plan is held to the model with the whole adapter: KL a token in nats, and how often both
    have the same likeliest token. Needs adaptrix[torch].
    """
    base, pipeline = one_base(positional, base), Pipeline()
    if plot is not None:
        from adaptrix.cli.plot import require_drawable

        require_drawable(plot, force=force)
    wanted = FidelityOptions(**options)
    require_measurable(pipeline, source, base, text, wanted)
    report = _measuring().measure(
        pipeline, source, base, text, wanted, display=partial(bars(verbosity), f"measuring {source}")
    )
    if plot is not None:  # first: the reader of the table may leave before its end
        _plot(report, plot, force, verbosity)
    if verbosity.json:
        print_json(report.as_dict(), pipeline.catalog.problems)
    elif not verbosity.quiet:
        _show(report)
    show_problems((*pipeline.catalog.problems, *report.problems), verbosity)
    return 1 if errors_in(report.problems) else 0


def _measuring() -> Any:
    """The module that measures. Raises :class:`UsageError` without torch, with the command that installs it."""
    for module in ("torch", "transformers"):
        require(module, "torch", "fidelity")
    from adaptrix.measuring import measure

    return measure


def _plot(report: FidelityReport, path: Path, force: bool, verbosity: Verbosity) -> None:
    from adaptrix.cli.plot import draw_costs

    draw_costs(report, path, force=force)
    if not verbosity.quiet and not verbosity.json:
        click.echo(f"drew {path}", err=True)


def _show(report: FidelityReport) -> None:
    console = Console(highlight=False)
    tokens = f"{report.tokens} token{'s' if report.tokens > 1 else ''}"
    cut = f"{report.windows} windows of {report.window}" if report.windows > 1 else "one window"
    text = f"{report.source} on {report.text['file']}: {tokens} in {cut}, {report.dtype} on {report.device}"
    click.echo(clean(text))
    rows = [_cells(row, report.depth) for row in report.rows]
    if console.width >= _WIDE:
        console.print(_table(_COLUMNS, rows))
    else:
        console.print(_table(_COLUMNS[:_FIRST], [row[:_FIRST] for row in rows]))
        click.echo()
        console.print(_table((_COLUMNS[0], *_COLUMNS[_FIRST:]), [(row[0], *row[_FIRST:]) for row in rows]))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        left = column in ("plan", "layers")
        table.add_column(column, justify="left" if left else "right", no_wrap=True, max_width=16 if left else None)
    for row in rows:
        table.add_row(*row)
    return table


def _cells(row: Row, depth: int) -> tuple[str, ...]:
    return (
        clean(row.policy),
        row.layers or "none",
        f"{row.kept}/{depth}",
        _share(row.retained),
        _figure(row.kl.value),
        _interval(row.kl),
        _share(row.agreement.value),
        f"{row.perplexity.value:,.2f}" if row.perplexity.value < 1e5 else f"{row.perplexity.value:.3g}",
        "N/A" if row.bits_per_byte is None else f"{row.bits_per_byte.value:.4f}",
        f"{row.tokens_per_second:,.0f}",
        _share(row.reused),
    )


def _share(value: float | None) -> str:
    return "N/A" if value is None else f"{value:.1%}"


def _figure(value: float) -> str:
    """Four digits; small numbers with their exponent."""
    return "0" if value == 0 else f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"


def _interval(kl: Estimate) -> str:
    return "N/A" if kl.low is None or kl.high is None else f"{_figure(kl.low)}–{_figure(kl.high)}"
