"""``adaptrix extract``."""

from __future__ import annotations

from typing import Any

import click

from adaptrix.algebra.comparison import label
from adaptrix.algebra.extraction import Extraction, extract_adapter
from adaptrix.algebra.factors import Loss, total
from adaptrix.algebra.lora_svd import SOLVERS
from adaptrix.algebra.outcome import Outcome
from adaptrix.cli.common import Verbosity, offering, output_options, show_outcome, verbosity_options, working
from adaptrix.cli.whole_base import base_argument, one_base
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline

_MODEL = "A folder with a model's config and weights, or OWNER/NAME on the Hub."


@click.command()
@click.argument("tuned", metavar="FINETUNED", type=click.Path())
@base_argument(f"What it was fine-tuned from. {_MODEL}")
@click.option("--rank", type=int, default=16, show_default=True, metavar="R", help="Rank of every delta.")
@click.option(
    "--svd",
    "solver",
    default="auto",
    show_default=True,
    metavar="HOW",
    shell_complete=offering(*SOLVERS),
    help=f"One of {', '.join(SOLVERS)}: by LAPACK, or by random subspaces, for small ranks.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the random subspaces.")
@click.option("--save", multiple=True, metavar="PATTERN", help="Keep these tensors whole; no LoRA is made of them.")
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Leave these tensors out; their change is lost.")
@output_options
@verbosity_options
def command(
    tuned: str,
    positional: str | None,
    base: str | None,
    rank: int,
    solver: Any,
    seed: int,
    save: tuple[str, ...],
    ignore: tuple[str, ...],
    out: str | None,
    verbosity: Verbosity,
    **options: Any,
) -> int:
    """Take a LoRA out of a full fine-tune.

    \b
      adaptrix extract ./tuned --base ./base --rank 32
      adaptrix extract ./tuned --base ./base --save '*norm*' --ignore '*.bias' --to peft -o lora

    Every linear layer's difference from the base becomes the best delta of the rank, and the share of ‖ΔW‖² that this
    keeps is printed. Changes of anything else (norms, biases, embeddings) are listed, and you decide.
    """
    base, pipeline = one_base(positional, base), Pipeline()
    extraction = Extraction(rank, solver, seed, save, ignore)
    busy = working(f"comparing {tuned} with {base}", verbosity)
    done = extract_adapter(pipeline, tuned, base, extraction, out, Options(**options), busy)
    show_outcome(done, verbosity, pipeline)
    if not verbosity.json and not verbosity.quiet:
        _show_energies(done, verbosity)
    return 0


def _show_energies(done: Outcome, verbosity: Verbosity) -> None:
    """The share of ‖ΔW‖² kept, by role; of every module under ``-v``."""
    groups: dict[str, list[Loss]] = {}
    for site, loss in done.losses.items():
        groups.setdefault(str(site) if verbosity.verbose else label(site), []).append(loss)
    width = max(map(len, groups))
    for name, losses in groups.items():
        least = "" if len(losses) == 1 else f"  of {len(losses)}, the least {min(loss.kept for loss in losses):.2%}"
        click.echo(f"  {name:{width}}  {total(losses).kept:8.2%}{least}")
