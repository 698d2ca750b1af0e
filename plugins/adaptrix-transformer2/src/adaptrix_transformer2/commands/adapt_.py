"""``adaptrix transformer2 adapt``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptrix.extend import (
    Options,
    Pipeline,
    Verbosity,
    bars,
    clean,
    number,
    offering,
    print_json,
    require_options,
    show_problems,
    verbosity_options,
    whole_base_option,
)
from adaptrix_transformer2.commands.evaluate_ import named

if TYPE_CHECKING:
    from adaptrix import Adapter
    from adaptrix_transformer2.decomposition import Decomposition
    from adaptrix_transformer2.dispatch import Search, SearchResult
    from adaptrix_transformer2.schemas import AdaptJSON

_METHOD = "How mixtures are searched: cem or random. [default: cem]"


@click.command()
@click.argument("experts", metavar="EXPERT...", nargs=-1, required=True, type=click.Path())
@whole_base_option
@click.option("--examples", metavar="FILE", type=click.Path(path_type=Path), required=True, help="JSON lines; ten do.")
@click.option(
    "--search", "method", metavar="METHOD", default="cem", shell_complete=offering("cem", "random"), help=_METHOD
)
@click.option("--each", is_flag=True, help="Weights of its own for every matrix, and not one set for all.")
@click.option("--generations", type=int, default=8, show_default=True, help="Of 32 mixtures each.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search.")
@click.option("--chat", is_flag=True, help="Prompts are turns of the tokenizer's chat template.")
@click.option("--name", default="mixture", show_default=True, help="What the mixture is called.")
@click.option("-o", "--out", metavar="PATH", help="The file to write. [default: by its name]")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dtype", metavar="DTYPE", help="Load the base in fp32, bf16, fp16 or fp64. [default: fp32]")
@click.option("--device", metavar="DEVICE", help="Where to compute. [default: the accelerator, if there is one]")
@verbosity_options
def command(
    experts: tuple[str, ...],
    base: str,
    examples: Path,
    method: str,
    each: bool,
    generations: int,
    seed: int,
    chat: bool,
    name: str,
    out: str | None,
    force: bool,
    dtype: str | None,
    device: str | None,
    verbosity: Verbosity,
) -> int:
    """Search the mixture of experts that answers a few examples best, and write it as an expert.

    \b
      adaptrix transformer2 adapt maths.adaptrix.safetensors code.adaptrix.safetensors --base ./llama3-8b \\
        --examples ten.jsonl --name both

    The cross-entropy method, as published: the greater share of right answers wins, then the greater likelihood.
    The base counts as an expert of z = 1.
    """
    from adaptrix_transformer2.dispatch import Search
    from adaptrix_transformer2.dispatch.searching import require_valid
    from adaptrix_transformer2.experts import as_json, save

    settings: Search = Search(method=method, generations=generations, seed=seed)  # type: ignore[arg-type]  # looked at below
    require_valid(settings)
    options, pipeline = Options(name=name, force=force), Pipeline()
    require_options(options)
    pipeline.prepare(out, options)
    path = pipeline.output_path(name, out)
    on, where = (examples, chat, each), (device, dtype)
    found, mixed, parts = _adapted(named(experts), base, on, settings, where, pipeline, verbosity)
    mixed = replace(mixed, name=name)
    save(mixed, parts, out, force=force)
    weights = mixed.provenance.config["weights"]
    if verbosity.json:
        report: AdaptJSON = {
            "sources": list(experts),
            "base": base,
            "ok": True,
            "problems": [],
            "path": str(path),
            "adapter": as_json(mixed, parts),
            "weights": weights,
            "right": number(found.score.right),
            "likelihood": number(found.score.likelihood),
            "evaluations": found.evaluations,
        }
        print_json(report, pipeline.catalog.problems)
    elif not verbosity.quiet:
        _show(path, found, weights)
    show_problems(pipeline.catalog.problems, verbosity)
    return 0


def _adapted(
    experts: dict[str, str],
    base: str,
    on: tuple[Path, bool, bool],
    settings: Search,
    where: tuple[str | None, str | None],
    pipeline: Pipeline,
    verbosity: Verbosity,
) -> tuple[SearchResult, Adapter, Decomposition]:
    """The result of the search, and its mixture."""
    import adaptrix
    from adaptrix.extend import base_model_at, placement
    from adaptrix_transformer2 import decomposed, untrained
    from adaptrix_transformer2.dispatch import adapt, mixture
    from adaptrix_transformer2.texts import read_examples

    examples, chat, each = on
    loaded = {name: adaptrix.load(uri) for name, uri in experts.items()}
    base_model = base_model_at(base, pipeline, placement(*where))
    shots = read_examples(examples, base_model.tokenizer(), chat=chat)
    with base_model.model() as model:
        parts = replace(decomposed(model, display=bars(verbosity)), base=base)
        members = {**loaded, "base": untrained(parts, "base")}
        found = adapt(model, parts, members, shots, each=each, options=settings)
    return found, mixture(parts, members, found.weights), parts


def _show(path: Path, found: SearchResult, weights: Mapping[str, Sequence[float]]) -> None:
    said = f"{found.score.right:.0%} of the examples right, {found.evaluations} mixtures judged"
    click.echo(f"{click.style(clean(str(path)), bold=True)}  {said}")
    for name, shares in weights.items():
        click.echo(f"  {clean(name)}: {sum(shares) / len(shares):.3f}")
