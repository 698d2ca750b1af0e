"""``adaptrix convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adaptrix.cli.common import (
    Voice,
    base_option,
    print_json,
    show_problems,
    show_refusal,
    voice_options,
    working,
)
from adaptrix.errors import AdaptrixError, Problem, UsageError
from adaptrix.text import amount
from adaptrix.workflow import Conversion, Options, Workshop


@click.command()
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File or folder to write; a folder for several SRC.")
@click.option("--to", default="injection", show_default=True, metavar="FORMAT", help="injection or peft.")
@base_option
@click.option("--layers", metavar="POLICY", help="all, middle, spread:K, energy:K, or 8-23,28. [default: middle]")
@click.option(
    "--redistribute",
    type=click.Choice(["none", "nearest"]),
    default="none",
    show_default=True,
    help="Fold the deltas of dropped layers into the nearest kept layer.",
)
@click.option("--rank", type=int, metavar="R", help="Recompress deltas above this rank (QR + SVD).")
@click.option("--prune", is_flag=True, help="Drop what the plan does not use. The only way to lose something.")
@click.option("--dtype", type=click.Choice(["F32", "F16", "BF16", "F64"], case_sensitive=False), help="Round deltas.")
@click.option("--name", help="Name for the adapter. [default: that of the source]")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--allow-nonfinite", is_flag=True, help="Let NaN and Inf through.")
@voice_options
def command(sources: tuple[str, ...], out: Path | None, voice: Voice, **options: Any) -> int:
    """Write adapters as injection files, or back as PEFT folders.

    \b
    SRC is a folder, a file, or OWNER/NAME[@REVISION] on the Hub:
      adaptrix convert tloen/alpaca-lora-7b
      adaptrix convert ./my-lora --base ./llama --layers all
      adaptrix convert my-lora.adaptrix.safetensors --to peft -o my-lora

    Everything is checked before anything is written. The file holds every tensor of the source,
    byte for byte; the plan says which layers act.
    """
    if len(sources) > 1 and out is not None and not out.is_dir():
        raise UsageError(
            Problem("option", str(out), "no folder", "an existing folder for several sources", f"mkdir {out}")
        )
    workshop, results, codes = Workshop(), [], []
    for source in sources:
        try:
            with working(f"converting {source}", voice):
                done = workshop.convert(source, _into(out, len(sources), source, options), Options(**options))
        except AdaptrixError as error:
            codes.append(error.exit_code)
            results.append({"source": source, "ok": False, "problems": [p.as_dict() for p in error.problems]})
            show_refusal(source, "not converted, ", error.problems, voice)
        else:
            results.append(_result(source, done))
            _show(done, voice)
    if voice.json:
        print_json(results)
    show_problems(workshop.catalog.problems, voice)
    return max(codes, default=0)


def _into(out: Path | None, count: int, source: str, options: dict[str, Any]) -> Path | None:
    """Where one of several sources goes that become folders: under ``out`` by its own name."""
    if out is None or count == 1 or options["to"] == "injection":
        return out
    return out / (options["name"] or Path(source.partition("@")[0]).name.removesuffix(".adaptrix.safetensors"))


def _result(source: str, done: Conversion) -> dict[str, Any]:
    plan = done.plan
    return {
        "source": source,
        "ok": True,
        "path": str(done.path),
        "architecture": plan.bound.architecture.family,
        "plan": {
            "policy": plan.policy,
            "layers": {stack: list(layers) for stack, layers in plan.layers.items()},
            "sites": len(plan.sites),
            "of": len(plan.bound.deltas),
            "retained": plan.retained,
        },
        "problems": [problem.as_dict() for problem in done.problems],
    }


def _show(done: Conversion, voice: Voice) -> None:
    if not voice.json and not voice.quiet:
        tensors = list(done.plan.bound.adapter.tensors())
        held = f"{len(tensors)} tensors, {amount(sum(tensor.nbytes for _, tensor in tensors))}"
        click.echo(f"{click.style(str(done.path), bold=True)}  {held}, {done.plan.bound.architecture.family}")
        rest = "" if done.plan.complete else "; --layers all makes every layer act"
        click.echo(f"  {done.plan.describe()}{rest}")
    show_problems(done.problems, voice)
