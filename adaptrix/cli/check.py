"""``adaptrix check``."""

from __future__ import annotations

import click

from adaptrix.binding.bind import BoundAdapter
from adaptrix.cli.common import (
    Verbosity,
    base_option,
    print_json,
    show_problems,
    show_refusal,
    verbosity_options,
    working,
)
from adaptrix.pipeline import Pipeline
from adaptrix.results import CheckReport


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@base_option
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf pass.")
@verbosity_options
def command(source: str, base: str | None, allow_nonfinite: bool, verbosity: Verbosity) -> int:
    """Say everything that is wrong with an adapter, alone and on a base.

    Ends with 0 if it is fine, 1 if not, 2 if there is no such path, 3 if it cannot be reached.
    """
    pipeline = Pipeline()
    report = pipeline.read_and_bind(source, base).noted()  # no spinner: the Hub's client draws bars
    if not allow_nonfinite:
        with working(f"checking {source}", verbosity):
            report = report.examined()
    if verbosity.json:
        print_json(report.as_dict(), pipeline.catalog.problems)
    elif not verbosity.quiet and report.ok:
        click.echo(_verdict(report))
    problems = (*pipeline.catalog.problems, *report.problems)
    show_problems(problems, verbosity) if report.ok else show_refusal(source, "", problems, verbosity)
    return 0 if report.ok else 1


def _verdict(report: CheckReport) -> str:
    fine = click.style("fine", fg="green", bold=True)
    if report.bound is None:
        return f"{report.source}: {fine}"
    bound = report.bound
    return f"{report.source}: {fine}; {len(bound.deltas)} deltas{_against(bound)}"


def _against(bound: BoundAdapter) -> str:
    """The family, and what the shapes were held to."""
    if not bound.architecture.dims:
        return " of an unknown family: shapes not checked against a model"
    known = [name for name, origin in bound.dims.origins.items() if origin == "config"]
    against = f"checked against {len(known)} dims of the base" if known else "dims inferred from the tensors"
    return f", {bound.architecture.family}, {against}"
