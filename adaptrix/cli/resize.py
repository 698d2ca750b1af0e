"""``adaptrix resize``."""

from __future__ import annotations

from typing import Any

import click

from adaptrix.algebra.compression import Size, resize_adapter
from adaptrix.cli.common import Verbosity, base_option, output_options, show_outcome, verbosity_options, working
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline


@click.command()
@click.argument("source", metavar="SRC", type=click.Path())
@click.option("--rank", type=int, metavar="R", help="Rank of every delta.")
@click.option("--energy", type=float, metavar="E", help="Smallest ranks that keep this share of each ‖ΔW‖².")
@base_option
@output_options
@verbosity_options
def command(
    source: str, rank: int | None, energy: float | None, out: str | None, verbosity: Verbosity, **options: Any
) -> int:
    """Bring an adapter to another rank.

    \b
      adaptrix resize ./my-lora --rank 4
      adaptrix resize ./my-lora --energy 0.99 --to peft -o smaller

    To a smaller rank by QR and SVD: the best there is, and its error is printed. To a larger one by zeros: exact.
    """
    pipeline = Pipeline()
    busy = working(f"resizing {source}", verbosity)
    done = resize_adapter(pipeline, source, Size(rank, energy), out, Options(**options), busy)
    show_outcome(done, verbosity, pipeline)
    return 0
