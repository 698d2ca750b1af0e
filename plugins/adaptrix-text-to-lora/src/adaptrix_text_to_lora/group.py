"""``adaptrix text-to-lora``: train a hypernetwork, evaluate it, import one that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from adaptrix.extend import Verbosity, bars, clean, number, print_json, verbosity_options, whole_base_option
from adaptrix_text_to_lora.command import ENCODER

if TYPE_CHECKING:
    from adaptrix_text_to_lora.schemas import TrainJSON
    from adaptrix_text_to_lora.training.evaluation import EvaluationReport
    from adaptrix_text_to_lora.training.importing import ImportedCheckpoint
    from adaptrix_text_to_lora.training.job import Trained

_TENTH = 10


@click.group()
def command() -> None:
    """Train a hypernetwork, evaluate it, or import one that was trained elsewhere."""


@command.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Where it goes.")
@click.option("--force", is_flag=True, help="Start over, and replace what is there.")
@verbosity_options
def train_command(config: Path, out: Path, force: bool, verbosity: Verbosity) -> int:
    """Train a hypernetwork as the YAML file CONFIG says.

    \b
      adaptrix text-to-lora train t2l.yaml -o ./t2l

    \b
    With `tasks`, a JSONL file of {"description", "prompt", "response"}, it is trained through the base. With
    `library`, one of {"adapter", "description"}, it learns to give those adapters back. A run that was stopped
    goes on where it was, to the same bytes.
    """
    from adaptrix_text_to_lora.training.config import read_config
    from adaptrix_text_to_lora.training.job import train

    done = train(read_config(config), out, force=force, display=bars(verbosity))
    said = _trained(done, config)
    if verbosity.json:
        print_json(said)
    elif not verbosity.quiet:
        click.echo(f"{click.style(clean(str(out)), bold=True)}  {said['steps']} steps", nl=False)
        click.echo(f", {said['resumed']} of them before" if done.resumed else "")
        click.echo(f"  loss {said['first']:.4g} in the first tenth, {said['last']:.4g} in the last")
    return 0


def _trained(done: Trained, config: Path) -> TrainJSON:
    loss = done.curve[:, 0]
    tenth = max(1, len(loss) // _TENTH)
    return {
        "source": str(config),
        "ok": True,
        "problems": [],
        "path": str(done.folder),
        "steps": len(loss),
        "resumed": done.resumed,
        "first": number(float(loss[:tenth].mean())),
        "last": number(float(loss[-tenth:].mean())),
    }


@command.command("evaluate")
@click.argument("tasks", type=click.Path(path_type=Path))
@click.option("--checkpoint", metavar="PATH", required=True, help="A trained hypernetwork: hypermod.pt, or its folder.")
@whole_base_option
@click.option("--encoder", metavar="ENCODER", help=ENCODER)
@click.option("--pooling", type=click.Choice(["cls", "mean", "last"]), help="What stands for a text, if nothing says.")
@click.option("--length", type=click.IntRange(2), default=512, show_default=True, help="Tokens of an example, at most.")
@click.option("--dtype", metavar="DTYPE", help="Load the base in fp32, bf16, fp16 or fp64. [default: fp32]")
@click.option("--device", metavar="DEVICE", help="Where to compute. [default: the accelerator, if there is one]")
@verbosity_options
def evaluate_command(tasks: Path, verbosity: Verbosity, **options: Any) -> int:
    """Evaluate a hypernetwork by how its adapters answer the prompts in the JSONL file TASKS.

    \b
      adaptrix text-to-lora evaluate held-out.jsonl --checkpoint ./t2l --base ./llama

    Beside it are the base alone, and every task under the description of another: an adapter that does as well
    under any description has not read it. `exact` is the share of responses that greedy decoding would write.
    """
    from adaptrix_text_to_lora.training.evaluation import evaluate_file

    found = evaluate_file(tasks, display=bars(verbosity), **options)
    if verbosity.json:
        print_json(found.as_dict())
    elif not verbosity.quiet:
        _show(found)
    return 0


def _show(found: EvaluationReport) -> None:
    scores = found.evaluation
    tasks, examples = len(found.names), scores.base.examples
    counts = f"{tasks} tasks, {examples} examples, {scores.base.tokens} tokens"
    click.echo(clean(f"{found.checkpoint} on {found.tasks}: {counts}"))
    table = Table(box=None, pad_edge=False)
    for name in ("", "loss", "tokens right", "exact"):
        table.add_column(name, justify="left" if not name else "right")
    rows = {"its description": scores.generated, "another's": scores.shuffled, "base alone": scores.base}
    for name, score in rows.items():
        numbers = (f"{score.loss:.4f}", f"{score.accuracy:.1%}", f"{score.exact:.1%}") if score else ("N/A",) * 3
        table.add_row(name, *numbers)
    Console(highlight=False).print(table)


@command.command("import")
@click.argument("checkpoint", type=click.Path())
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write it into a folder.")
@click.option("--force", is_flag=True, help="Replace an existing output, never the source.")
@verbosity_options
def import_command(checkpoint: str, out: Path | None, force: bool, verbosity: Verbosity) -> int:
    """Read a hypernetwork in SakanaAI's format, say what is in it, and write it for `adaptrix generate`.

    \b
      adaptrix text-to-lora import ./trained_t2l/hypermod.pt -o ./t2l

    No base is needed, and the pickle is never executed: what is written holds tensors alone, in their order.
    """
    from adaptrix_text_to_lora.training.importing import import_checkpoint

    found = import_checkpoint(checkpoint, out, force=force)
    if verbosity.json:
        print_json(found.as_dict())
    elif not verbosity.quiet:
        _show_imported(found)
    return 0


def _show_imported(found: ImportedCheckpoint) -> None:
    said = found.as_dict()
    head = clean(str(found.path or found.source))
    click.echo(f"{click.style(head, bold=True)}  {said['variant']}, {said['parameters']:,} parameters")
    scale = "alpha/√rank, rsLoRA" if said["rslora"] else "alpha/rank"
    click.echo(f"  rank {said['rank']}, alpha {said['alpha']:g}: ΔW = {said['scale']:.4g} · B·A ({scale})")
    for module in said["modules"]:
        out, inp = module["shape"]
        click.echo(clean(f"  {module['name']}  in {inp}, out {out}, {said['layers']} layers"))
    base, encoder = said["base"] or "not said", said["encoder"] or "the base's own states"
    click.echo(clean(f"  base {base}; encoder {encoder}, {said['embedding']} wide; trained by {said['task']}"))
