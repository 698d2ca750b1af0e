"""``adaptrix combine``."""

from __future__ import annotations

from typing import Any

import click

from adaptrix.algebra.combination import combine_adapters
from adaptrix.algebra.methods import METHODS
from adaptrix.algebra.recipe import Recipe
from adaptrix.cli.common import (
    Verbosity,
    base_option,
    offering,
    output_options,
    show_outcome,
    verbosity_options,
    working,
)
from adaptrix.errors import Problem, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline

_METHOD = f"One of {', '.join(METHODS)}."


@click.command()
@click.argument("sources", metavar="SRC...", type=click.Path(), nargs=-1, required=True)
@click.option("--weights", metavar="W,W,...", help="What each adapter is multiplied by. [default: equal shares of 1]")
@click.option(
    "--method", default="cat", show_default=True, metavar="METHOD", help=_METHOD, shell_complete=offering(*METHODS)
)
@click.option("--rank", type=int, metavar="R", help="Rank of svd. [default: the largest of the adapters' own]")
@click.option("--density", type=float, metavar="D", help="Share of numbers that ties and dare keep. [default: 0.5]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of what dare drops.")
@click.option("--drop-extras", is_flag=True, help="Leave out trained heads, biases and tokens: they are lost.")
@base_option
@output_options
@verbosity_options
def command(
    sources: tuple[str, ...],
    weights: str | None,
    method: str,
    rank: int | None,
    density: float | None,
    seed: int,
    drop_extras: bool,
    out: str | None,
    verbosity: Verbosity,
    **options: Any,
) -> int:
    """Make one adapter of several: the weighted sum of their ΔW.

    \b
      adaptrix combine ./math ./code --weights 0.7,0.3
      adaptrix combine ./math ./code --method svd --rank 8 --to peft -o both

    cat puts the ranks side by side, and is exact. svd is the best sum of a rank. linear, ties, dare and dare-ties add
    factors instead of their products, as peft does. Ranks, scales, layers and names may differ; the error against the
    exact sum is measured and printed.
    """
    recipe = Recipe(_numbers(weights), method, rank, density, seed, drop_extras)
    pipeline = Pipeline()
    busy = working("combining", verbosity)
    done = combine_adapters(pipeline, sources, recipe, out, Options(**options), busy)
    show_outcome(done, verbosity, pipeline)
    return 0


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise UsageError(Problem("option", "weights", repr(text)[:200], "numbers such as 0.7,0.3")) from None
