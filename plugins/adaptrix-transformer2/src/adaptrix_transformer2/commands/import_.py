"""``adaptrix transformer2 import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptrix.extend import (
    Options,
    Pipeline,
    Verbosity,
    bars,
    clean,
    print_json,
    require_options,
    show_problems,
    verbosity_options,
    whole_base_option,
)
from adaptrix_transformer2.commands.outputs import require_no_source

if TYPE_CHECKING:
    from adaptrix_transformer2.schemas import ImportJSON

_DECOMPOSED = "The *_decomposed_params.pt that they were trained with; what the base's own makes of them is measured."


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@whole_base_option
@click.option("--decomposed", type=click.Path(path_type=Path), metavar="FILE", help=_DECOMPOSED)
@click.option("-o", "--out", type=click.Path(), help="File to write; FOLDER/ to write into it.")
@click.option("--name", help="Name for the expert. [default: that of the file]")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity_options
def command(
    file: Path, base: str, decomposed: Path | None, out: str | None, name: str | None, force: bool, verbosity: Verbosity
) -> int:
    """Read an expert that the published code has saved.

    \b
    FILE is a policy_params.pt or a learnable_params.pt; the pickle in it is never run:
      adaptrix transformer2 import policy_params.pt --base ./llama3-8b --name maths

    What is written is an injection file of z and S, bound to the weights of the base. These are decomposed once, and
    the cache keeps that ($ADAPTRIX_CACHE moves it).
    """
    options = Options(name=name, force=force)
    require_options(options)
    pipeline = Pipeline()
    pipeline.prepare(out, options)
    require_no_source(out, name or file.stem, pipeline, (file, decomposed))
    from adaptrix_transformer2.decomposition import decomposed_base
    from adaptrix_transformer2.experts import as_json, save
    from adaptrix_transformer2.published import read_published, require_readable

    require_readable(file, decomposed)
    parts = decomposed_base(base, pipeline, display=bars(verbosity))
    made = read_published(file, parts, decomposed, name=name)
    path = save(made, parts, out, force=force)
    numbers = sum(delta.rank for delta in made.deltas.values())
    if verbosity.json:
        report: ImportJSON = {
            "source": str(file),
            "base": base,
            "ok": True,
            "problems": [problem.as_dict() for problem in made.problems],
            "path": str(path),
            "adapter": as_json(made, parts),
            "numbers": numbers,
        }
        print_json(report, pipeline.catalog.problems)
    elif not verbosity.quiet:
        held = f"{numbers:,} numbers for {len(made.deltas)} matrices"
        click.echo(f"{click.style(clean(str(path)), bold=True)}  {held}")
    show_problems((*pipeline.catalog.problems, *made.problems), verbosity)
    return 0
