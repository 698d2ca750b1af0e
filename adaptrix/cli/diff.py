"""``adaptrix diff``."""

from __future__ import annotations

from collections import Counter

import click
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from adaptrix.algebra.comparison import Comparison, Likeness, compare_adapters, label
from adaptrix.cli.common import Verbosity, base_option, clean, print_json, show_problems, verbosity_options, working
from adaptrix.pipeline import Pipeline
from adaptrix.wording import some

_ROWS = 60  # of a table; --json has them all
_CELL = len("+0.00 ×00.00")


@click.command()
@click.argument("first", metavar="A", type=click.Path())
@click.argument("second", metavar="B", type=click.Path())
@base_option
@verbosity_options
def command(first: str, second: str, base: str | None, verbosity: Verbosity) -> int:
    """Say how alike two adapters are, by role and layer.

    The cosine of the angle between their ΔW, how much longer that of B is, and how far apart they are. No ΔW is
    built. Where only one has a delta, the other's is zero.
    """
    pipeline = Pipeline()
    comparison = compare_adapters(pipeline, first, second, base, working("comparing", verbosity))
    if verbosity.json:
        print_json(comparison.as_dict(), pipeline.catalog.problems)
    elif not verbosity.quiet:
        _show(comparison)
    show_problems((*pipeline.catalog.problems, *comparison.problems), verbosity)
    return 0


def _show(comparison: Comparison) -> None:
    console = Console(highlight=False)
    console.print(_roles(comparison))
    if comparison.cells:
        console.print(Text("\ncosine, and ‖B‖/‖A‖, by layer and role", style="bold"))
        console.print(_cells(comparison, console.width))
    for which, name in enumerate(comparison.names):
        if sites := comparison.only(which):
            console.print(Text(f"only in {clean(name)}: {some(map(str, sites), 4)}"))


def _roles(comparison: Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("role")
    for column in ("both", "only A", "only B", "cosine", "‖B‖/‖A‖", "‖A−B‖/‖A‖"):
        table.add_column(column, justify="right")
    counts = [Counter(label(site) for site in sites) for sites in (comparison.sites, *map(comparison.only, (0, 1)))]
    for role, found in list(comparison.roles.items())[:_ROWS]:
        table.add_row(clean(role), *_numbers([count[role] for count in counts], found))
    table.add_row("all", *_numbers([count.total() for count in counts], comparison.total), style="bold")
    return table


def _numbers(counts: list[int], found: Likeness) -> list[str]:
    every, *only = counts
    return [str(every - sum(only)), *map(str, only), *map(_number, (found.cosine, found.ratio, found.distance))]


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def _cells(comparison: Comparison, width: int) -> Group:
    """One row a layer, one column a role; as many roles side by side as there is room for."""
    roles = [role for role in comparison.roles if any(role in row for row in comparison.cells.values())]
    step = max(1, (width - len("layer")) // (_CELL + 2))
    tables = [_strip(comparison, roles[start : start + step]) for start in range(0, len(roles), step)]
    more = len(comparison.cells) - _ROWS
    rest = [Text(f"… and {more} more layers: --json has them all", style="dim")] if more > 0 else []
    return Group(*tables, *rest)


def _strip(comparison: Comparison, roles: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("layer", *roles):
        table.add_column(clean(column), justify="right", no_wrap=True)
    for layer, row in list(comparison.cells.items())[:_ROWS]:
        table.add_row(str(layer), *(_cell(row.get(role)) for role in roles))
    return table


def _cell(found: Likeness | None) -> str:
    if found is None:
        return "·"
    return f"{found.cosine:+.2f} ×{found.ratio:.2f}" if found.first and found.second else "–"
