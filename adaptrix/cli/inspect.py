"""``adaptrix inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptrix.cli.common import Verbosity, base_option, print_json, show_problems, verbosity_options, working
from adaptrix.inspection import Inspection, summarise
from adaptrix.pipeline import Pipeline


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@base_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg|png",
    help="Draw ‖ΔW‖ by layer and role to a file (needs adaptrix[plot]).",
)
@click.option("--force", is_flag=True, help="Replace an existing plot.")
@verbosity_options
def command(source: str, base: str | None, plot: Path | None, force: bool, verbosity: Verbosity) -> int:
    """Show what is in an adapter, and where its weight lies."""
    pipeline = Pipeline()
    if plot is not None:
        _require_drawable(plot, force)
    bound = pipeline.bind(pipeline.read(source), base)  # no spinner: the Hub's client draws bars
    with working(f"reading {source}", verbosity):
        inspection = summarise(bound, source)
    if plot is not None:  # first: the reader of the table may leave before its end
        _plot(inspection, plot, force, verbosity)
    if verbosity.json:
        print_json(inspection.as_dict(), pipeline.catalog.problems)
    elif not verbosity.quiet:
        from adaptrix.cli.picture import show

        show(inspection)
    show_problems((*pipeline.catalog.problems, *inspection.problems), verbosity)
    return 1 if any(problem.severity == "error" for problem in inspection.problems) else 0


def _require_drawable(path: Path, force: bool) -> None:
    from adaptrix.cli.plot import require_drawable

    require_drawable(path, force=force)


def _plot(inspection: Inspection, path: Path, force: bool, verbosity: Verbosity) -> None:
    from adaptrix.cli.plot import draw_norms

    draw_norms(inspection, path, force=force)
    if not verbosity.quiet and not verbosity.json:
        click.echo(f"drew {path}", err=True)
