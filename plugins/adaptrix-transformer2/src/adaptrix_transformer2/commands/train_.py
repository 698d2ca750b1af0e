"""``adaptrix transformer2 train``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adaptrix import Problem
from adaptrix.extend import (
    Options,
    Pipeline,
    Verbosity,
    atomic,
    bars,
    clean,
    number,
    print_json,
    require_options,
    show_problems,
    verbosity_options,
)
from adaptrix_transformer2.commands.outputs import require_no_source, require_other

if TYPE_CHECKING:
    from adaptrix_transformer2.config import Config
    from adaptrix_transformer2.decomposition import Decomposition
    from adaptrix_transformer2.schemas import TrainJSON
    from adaptrix_transformer2.train import Trained


@click.command()
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing output.")
@verbosity_options
def command(config: Path, force: bool, verbosity: Verbosity) -> int:
    """Train an expert, on answers or on rewards.

    \b
    CONFIG.yaml says on what; all but base and examples may be left out:
      base: ./llama3-8b          # a folder or OWNER/NAME
      examples: maths.jsonl      # {"prompt": "…", "response": "…"} a line
      validation: held-out.jsonl # the best on these is kept
      name: maths
      method: reinforce          # sft, reinforce, or faithful (as published)
      reward: number             # exact, contains, number
      steps: 200

    Stopped, and called again, it goes on where it was. docs/guides/transformer2.md lists every key.
    """
    from adaptrix_transformer2.config import read_config
    from adaptrix_transformer2.experts import save

    wanted = read_config(config)
    options, pipeline = Options(name=wanted.name, force=force), Pipeline()
    require_options(options)
    pipeline.prepare(wanted.out, options)
    if wanted.history is not None:
        atomic.require_free(wanted.history, force=force)
    sources = (config, wanted.examples, wanted.validation)
    path = require_no_source(wanted.out, wanted.name, pipeline, sources)
    if wanted.history is not None:
        require_other(wanted.history, path, sources)
    state = path.with_name(f"{path.name}.training")
    trained, parts = _trained(wanted, pipeline, state, verbosity)
    save(trained.adapter, parts, wanted.out, force=force)
    if wanted.history is not None:
        with atomic.output(wanted.history, force=force) as work:
            work.write_text(json.dumps([dict(figures) for figures in trained.history]))
    state.unlink(missing_ok=True)  # not before: a run that is killed while it writes goes on from it
    equal = list(_equal_rewards(trained))
    if verbosity.json:
        print_json(_result(config, path, trained, wanted, parts, equal), pipeline.catalog.problems)
    elif not verbosity.quiet:
        _show(path, trained, wanted)
    show_problems((*pipeline.catalog.problems, *equal), verbosity)
    return 0


def _trained(wanted: Config, pipeline: Pipeline, state: Path, verbosity: Verbosity) -> tuple[Trained, Decomposition]:
    from adaptrix.extend import base_model_at, placement
    from adaptrix_transformer2.decomposition import decomposed
    from adaptrix_transformer2.texts import read_examples, reward_on_text
    from adaptrix_transformer2.train import reinforce, sft

    base_model = base_model_at(wanted.base, pipeline, placement(wanted.device, wanted.dtype))
    tokenizer, display = base_model.tokenizer(), bars(verbosity)
    examples = read_examples(wanted.examples, tokenizer, chat=wanted.chat)
    held = [] if wanted.validation is None else read_examples(wanted.validation, tokenizer, chat=wanted.chat)
    with base_model.model() as model:
        parts = replace(decomposed(model, layers=wanted.layers, display=display), base=wanted.base)
        options: dict[str, Any] = {"validation": held, "name": wanted.name, "display": display}
        options |= {"state": state, "keep_state": True}
        if wanted.policy is None:
            return sft(model, examples, wanted.settings, decomposition=parts, **options), parts
        reward = reward_on_text(wanted.reward, tokenizer)
        return reinforce(model, examples, reward, wanted.settings, wanted.policy, decomposition=parts, **options), parts


def _equal_rewards(trained: Trained) -> Iterator[Problem]:
    """A note on steps whose rewards were all equal."""
    equal = sum("equal" in figures for figures in trained.history)
    if equal:
        found = f"the rewards of {equal} of {len(trained.history)} steps were all equal, and taught little or nothing"
        yield Problem("rewards-equal", "reward", found, severity="note")


def _result(
    config: Path, path: Path, trained: Trained, wanted: Config, parts: Decomposition, problems: list[Problem]
) -> TrainJSON:
    from adaptrix_transformer2.experts import as_json

    return {
        "source": str(config),
        "base": wanted.base,
        "ok": True,
        "problems": [problem.as_dict() for problem in problems],
        "path": str(path),
        "adapter": as_json(trained.adapter, parts),
        "method": wanted.method,
        "numbers": _numbers(trained),
        "steps": len(trained.history),
        "started": number(trained.started),
        "score": number(trained.score),
    }


def _numbers(trained: Trained) -> int:
    return sum(delta.rank for delta in trained.adapter.deltas.values())


def _show(path: Path, trained: Trained, wanted: Config) -> None:
    held = f"{_numbers(trained):,} numbers for {len(trained.adapter.deltas)} matrices, {len(trained.history)} steps"
    click.echo(f"{click.style(clean(str(path)), bold=True)}  {held}")
    if trained.score is not None and trained.started is not None:
        what, sign = ("loss a token", -1) if wanted.method == "sft" else ("mean reward", 1)
        click.echo(f"  {what} on the validation examples {sign * trained.started:.4f} → {sign * trained.score:.4f}")
