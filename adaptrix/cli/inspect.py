"""``adaptrix inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from adaptrix.cli.common import Voice, base_option, print_json, show_problems, voice_options, working
from adaptrix.inspection import Inspection, summarise
from adaptrix.pipeline import Workshop


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
@voice_options
def command(source: str, base: str | None, plot: Path | None, force: bool, voice: Voice) -> int:
    """Show what is in an adapter, and where its weight lies."""
    workshop = Workshop()
    if plot is not None:
        _require_drawable(plot, force)
    bound = workshop.bind(workshop.read(source), base)  # no spinner: the Hub's client draws bars
    with working(f"reading {source}", voice):
        inspection = summarise(bound)
    if plot is not None:  # first: the reader of the table may leave before its end
        _plot(inspection, plot, force, voice)
    if voice.json:
        print_json(inspection.as_dict())
    elif not voice.quiet:
        from adaptrix.cli.picture import show

        show(inspection)
    show_problems((*workshop.catalog.problems, *inspection.problems), voice)
    return 1 if any(problem.severity == "error" for problem in inspection.problems) else 0


def _require_drawable(path: Path, force: bool) -> None:
    from adaptrix.cli.plot import require_drawable

    require_drawable(path, force=force)


def _plot(inspection: Inspection, path: Path, force: bool, voice: Voice) -> None:
    from adaptrix.cli.plot import draw_norms

    draw_norms(inspection, path, force=force)
    if not voice.quiet and not voice.json:
        click.echo(f"drew {path}", err=True)
