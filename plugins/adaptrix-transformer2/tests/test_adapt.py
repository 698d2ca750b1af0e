"""``adaptrix transformer2 adapt``: from experts and a few examples to a mixture."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
from adaptrix_transformer2 import decomposed_base, expert, save, z_of_expert

import adaptrix
from adaptrix.cli import run
from adaptrix.extend import Pipeline
from tests.helpers.json_documents import document


def test_every_search_is_offered() -> None:
    """The command names them by hand: to import them would import torch for a shell's completion."""
    from adaptrix_transformer2.commands.adapt_ import command
    from adaptrix_transformer2.dispatch.searching import SEARCHES

    option = next(one for one in command.params if one.name == "method")
    offered = option.shell_complete(click.Context(command), "")
    assert [item.value for item in offered] == list(SEARCHES)
    assert all(name in str(option.help) for name in SEARCHES)  # type: ignore[attr-defined]  # it is an option


BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
LINES = [("The old sailor", " walked home."), ("A fox", " slept."), ("At noon", " it rained.")]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line on two experts of layer 7, one of them of no use."""
    monkeypatch.chdir(tmp_path)
    parts = decomposed_base(str(BASE), Pipeline(), layers=[7])
    for name, spread in (("mild", 0.01), ("wild", 9.0)):
        rng = np.random.default_rng(3)
        made = expert(parts, name, {path: rng.normal(1, spread, one.rank) for path, one in parts.spectra.items()})
        save(made, parts)
    shots = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in LINES]
    Path("shots.jsonl").write_text("\n".join(shots))
    files = [f"{name}.adaptrix.safetensors" for name in ("mild", "wild")]
    return ["transformer2", "adapt", *files, "--base", str(BASE), "--examples", "shots.jsonl", "--generations", "1"]


def test_a_mixture_is_searched_and_written(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line, "--json"]) == 0
    told = document(capsys.readouterr().out, 0)
    assert told["path"] == "mixture.adaptrix.safetensors"
    assert told["evaluations"] == 32
    shares = {name: one[0] for name, one in told["weights"].items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["wild.adaptrix.safetensors"] < 0.2
    made, mild = adaptrix.load(told["path"]), z_of_expert(adaptrix.load("mild.adaptrix.safetensors"))
    assert made.name == "mixture"
    wild = z_of_expert(adaptrix.load("wild.adaptrix.safetensors"))
    first, second, rest = shares.values()
    for path, z in z_of_expert(made).items():
        assert z == pytest.approx(first * mild[path] + second * wild[path] + rest if path in mild else 1, abs=1e-4)
    assert run(line) == 2, "the output is there already"
    assert run([*line, "--force", "--each", "--search", "random"]) == 0
    assert "32 mixtures judged" in capsys.readouterr().out


def test_a_bad_search_is_told_before_anything_is_loaded(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*line, "--search", "guess", "--seed", "-1"]) == 2
    said = capsys.readouterr().err
    assert "method" in said
    assert "seed" in said
    assert not list(Path().glob("mixture*"))
