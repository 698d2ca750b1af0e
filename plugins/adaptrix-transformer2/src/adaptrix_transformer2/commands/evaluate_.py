"""``adaptrix transformer2 evaluate``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adaptrix import Problem, UsageError
from adaptrix.extend import (
    Pipeline,
    Verbosity,
    bars,
    clean,
    offering,
    print_json,
    show_problems,
    verbosity_options,
    whole_base_option,
)

if TYPE_CHECKING:
    from adaptrix_transformer2.schemas import EvaluateJSON, ExpertScoreJSON

_REWARD = "What makes an answer right: exact, contains or number. [default: exact]"


@click.command()
@click.argument("experts", metavar="EXPERT...", nargs=-1, type=click.Path())
@whole_base_option
@click.option("--examples", metavar="FILE", type=click.Path(path_type=Path), required=True, help="JSON lines.")
@click.option(
    "--reward", metavar="REWARD", default="exact", shell_complete=offering("exact", "contains", "number"), help=_REWARD
)
@click.option("--longest", type=click.IntRange(1), default=64, show_default=True, help="Tokens of an answer at most.")
@click.option("--chat", is_flag=True, help="Prompts are turns of the tokenizer's chat template.")
@click.option("--dtype", metavar="DTYPE", help="Load the base in fp32, bf16, fp16 or fp64. [default: fp32]")
@click.option("--device", metavar="DEVICE", help="Where to compute. [default: the accelerator, if there is one]")
@verbosity_options
def command(
    experts: tuple[str, ...],
    base: str,
    examples: Path,
    reward: str,
    longest: int,
    chat: bool,
    dtype: str | None,
    device: str | None,
    verbosity: Verbosity,
) -> int:
    """Measure experts on examples, beside their base.

    \b
      adaptrix transformer2 evaluate maths.adaptrix.safetensors --base ./llama3-8b --examples held-out.jsonl

    For the base and for each expert: the loss a token of the examples' responses, and the share of likeliest answers
    that are right. Any adapter that can be attached is measured.
    """
    from adaptrix_transformer2.texts import REWARDS

    if reward not in REWARDS:
        raise UsageError(Problem("option", "reward", repr(reward)[:80], ", ".join(REWARDS)))
    pipeline = Pipeline()
    rows = _measured(named(experts), base, (examples, reward, longest, chat), (device, dtype), pipeline, verbosity)
    if verbosity.json:
        sources = list(experts)
        report: EvaluateJSON = {
            "sources": sources,
            "base": base,
            "ok": True,
            "problems": [],
            "examples": str(examples),
            "rows": rows,
        }
        print_json(report, pipeline.catalog.problems)
    elif not verbosity.quiet:
        width = max(len(row["name"]) for row in rows)
        click.echo(f"{'':{width}}  loss a token    right")
        for row in rows:
            click.echo(f"{clean(row['name']):{width}}  {row['loss']:12.4f}  {row['right']:6.1%}")
    show_problems(pipeline.catalog.problems, verbosity)
    return 0


def named(experts: tuple[str, ...]) -> dict[str, str]:
    """The experts by what they are called in the table: the last part of their path, or all of it."""
    count = Counter(Path(expert).name for expert in experts)
    named = {Path(expert).name if count[Path(expert).name] == 1 else expert: expert for expert in experts}
    return {("the expert base" if name == "base" else name): expert for name, expert in named.items()}


def _measured(
    experts: dict[str, str],
    base: str,
    task: tuple[Path, str, int, bool],
    where: tuple[str | None, str | None],
    pipeline: Pipeline,
    verbosity: Verbosity,
) -> list[ExpertScoreJSON]:
    import adaptrix
    from adaptrix.extend import base_model_at, placement
    from adaptrix_transformer2.texts import read_examples, reward_on_text
    from adaptrix_transformer2.train import mean_loss, mean_reward
    from adaptrix_transformer2.train.setup import require_usable

    file, reward, longest, chat = task
    base_model = base_model_at(base, pipeline, placement(*where))
    tokenizer = base_model.tokenizer()
    examples = read_examples(file, tokenizer, chat=chat)
    rewarded, rows = reward_on_text(reward, tokenizer), list["ExpertScoreJSON"]()
    with base_model.model() as model:
        require_usable(model, {str(file): examples}, longest)
        with adaptrix.attach(model, experts) as session, bars(verbosity)("measuring", 1 + len(experts)) as advance:
            for name in (None, *experts):
                with session.use(name):
                    loss, right = mean_loss(model, examples), mean_reward(model, examples, rewarded, longest)
                rows.append({"name": name or "base", "loss": loss, "right": right})
                advance(1)
    return rows
