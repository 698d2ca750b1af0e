"""``adaptrix generate``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptrix import AdaptrixError, Problem, UsageError
from adaptrix.extend import (
    Conversion,
    Options,
    Pipeline,
    Verbosity,
    amount,
    bars,
    clean,
    offering,
    output_options,
    print_json,
    require_folder,
    require_policy,
    show_problems,
    verbosity_options,
    working,
)
from adaptrix_text_to_lora.prompts import read_prompts, require_prompts

if TYPE_CHECKING:
    from adaptrix_text_to_lora.schemas import FailedJSON, GeneratedJSON, GenerateJSON

_CHECKPOINT = "A trained hypernetwork: hypermod.pt, or its folder.  [default: text-to-lora in the base's folder]"
ENCODER = """base (its own last states), hashed (n-grams, a baseline), or a folder or OWNER/NAME of an embedding model.
    [default: what the checkpoint was trained with]"""


@click.command()
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("--prompts", "file", type=click.Path(path_type=Path), metavar="FILE", help="Prompts, one a line.")
@click.option("--checkpoint", metavar="PATH", help=_CHECKPOINT)
@click.option("--base", metavar="MODEL", help="The model that the adapters are for: a folder or OWNER/NAME.")
@click.option("--encoder", metavar="ENCODER", help=ENCODER)
@click.option("--pooling", type=click.Choice(["cls", "mean", "last"]), help="What stands for a text, if nothing says.")
@click.option(
    "--layers",
    metavar="POLICY",
    default="all",
    show_default=True,
    shell_complete=offering("all", "middle", "spread:", "energy:"),
    help="Which layers act, as for convert.",
)
@output_options
@verbosity_options
def command(
    prompts: tuple[str, ...],
    file: Path | None,
    checkpoint: str | None,
    encoder: str | None,
    pooling: Any,
    out: str | None,
    verbosity: Verbosity,
    **options: Any,
) -> int:
    """Make adapters out of sentences, with a trained hypernetwork.

    \b
      adaptrix generate "Solve grade-school maths step by step" --base ./mistral --checkpoint ./t2l/hypermod.pt
      adaptrix generate --prompts tasks.txt --base ./mistral --checkpoint ./t2l -o adapters/ --to peft

    What is generated is an ordinary adapter, of which every layer acts unless --layers says otherwise. The
    checkpoint is never unpickled by Python; its format is that of SakanaAI's text-to-lora.
    """
    texts, wanted = require_prompts([*prompts, *(read_prompts(file) if file else ())]), Options(**options)
    require_policy(wanted.layers)
    out, pipeline = _output(out, wanted, texts), Pipeline()
    pipeline.prepare(out, wanted)
    from adaptrix_text_to_lora.generator import TextToLoRA  # torch: not before the command line is known to be right

    generator = TextToLoRA(checkpoint, wanted.base, encoder, pooling)  # no spinner: the Hub's client draws bars
    taken = _sources(checkpoint, wanted.base, file)
    with working(f"reading {len(texts)} prompts", verbosity):
        adapters = generator.generate_many(texts)
    results, code = list["GeneratedJSON | FailedJSON"](), 0
    with bars(verbosity)("generating", len(texts)) as advance:
        for text, adapter in zip(texts, adapters, strict=True):
            try:
                done = pipeline.write(pipeline.read_and_bind(adapter, wanted.base), out, wanted, taken)
            except AdaptrixError as error:  # of this one: the others may go where they should
                code = max(code, error.exit_code)
                results.append({"prompt": text, "ok": False, "problems": [p.as_dict() for p in error.problems]})
                show_problems(error.problems, verbosity)
            else:
                results.append(_result(text, done))
                _show(text, done, verbosity)
            advance(1)
    if verbosity.json:
        report: GenerateJSON = {"ok": code == 0, "problems": [], "results": results}
        print_json(report, pipeline.catalog.problems)
    show_problems(pipeline.catalog.problems, verbosity)
    return code


def _sources(checkpoint: str | None, base: str | None, prompts: Path | None) -> dict[Path, str]:
    """Files that no adapter is written over, and why."""
    from adaptrix_text_to_lora.checkpoint import own_checkpoint, source_files

    files = source_files(checkpoint or own_checkpoint(base))
    taken = dict.fromkeys(files, "the adapter is made with this file")
    return taken if prompts is None else {**taken, prompts: "the prompts are in this file"}


def _output(out: str | None, options: Options, texts: Sequence[str]) -> str | None:
    """The output: for several prompts a folder, with a name for each. Raises :class:`UsageError`."""
    if len(texts) == 1:
        return out
    if options.name is not None:
        found, remedy = f"one name for {len(texts)} prompts", "Leave it out, or generate them one at a time."
        raise UsageError(Problem("option", "name", found, remedy=remedy))
    return out if out is None else os.path.join(require_folder(out), "")


def _result(text: str, done: Conversion) -> GeneratedJSON:
    return {
        "prompt": text,
        "ok": True,
        "problems": [problem.as_dict() for problem in done.problems],
        **done.written(),
        "encoder": done.plan.bound.adapter.provenance.config["encoder"],
    }


def _show(text: str, done: Conversion, verbosity: Verbosity) -> None:
    if not verbosity.json and not verbosity.quiet:
        held = f"{done.tensors} tensors, {amount(done.nbytes)}, {done.plan.bound.architecture.family}"
        click.echo(f"{click.style(clean(str(done.path)), bold=True)}  {held}")
        click.echo(f"  {clean(text if len(text) <= 100 else text[:99] + '…')}")
    show_problems(done.problems, verbosity)
