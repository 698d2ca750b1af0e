"""Options that make no sense for any adapter are said before anything is read or loaded, and once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import placed

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, TELEGRAM, BASE = TINY / "adapters" / "pirate", TINY / "adapters" / "telegram", TINY / "base"
RUN = """
import json, sys
from adaptrix.cli import run
for line in json.load(sys.stdin):
    print(run(line), *sorted({"torch", "transformers"} & sys.modules.keys()))
    print("--", file=sys.stderr)
"""
LINES = {
    "'BAD' is no policy": ["merge", PIRATE, BASE, "--layers", "BAD"],
    "Did you mean middle?": ["merge", "no-such-adapter", "no-such-base", "--layers", "midle", "--verify"],
    "a fitted plan needs training": ["merge", PIRATE, BASE, "--layers", "fit:2"],
    "'' is no number of layers": ["merge", PIRATE, BASE, "--layers", "spread"],
    "there is no --text": ["convert", PIRATE, "--base", BASE, "--layers", "fit:2"],
    "'K' is no number of layers": ["convert", PIRATE, "--base", BASE, "--layers", "fit:K", "--text", __file__],
    "nowhere: there is no such file": ["convert", PIRATE, "--base", BASE, "--layers", "fit:2", "--text", "nowhere"],
    "is no policy; expected all": ["generate", "a pirate", "--base", BASE, "--layers", "BAD"],
    "its file needs no policy": ["generate", "a pirate", "--base", BASE, "--layers", "fit:2"],
}


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


def test_without_torch(tmp_path):
    lines = json.dumps([list(map(str, line)) for line in LINES.values()])
    done = subprocess.run([sys.executable, "-c", RUN], input=lines, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == ["2"] * len(LINES), done.stderr
    for said, told in zip(LINES, done.stderr.split("--\n"), strict=False):
        assert said in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("Did you mean middle?", ["--layers", "midle"]),
        ("rank: 0; expected", ["--rank", "0"]),
        ("there is no --text", ["--layers", "fit:2", "--base", BASE]),
        ("nowhere: there is no such file", ["--layers", "fit:2", "--base", BASE, "--text", "nowhere"]),
        ("no such format to write", ["--to", "pfet"]),
    ],
)
def test_of_several_sources_once(place, said, options):
    code, out, err = place.run("convert", PIRATE, TELEGRAM, *options)
    assert (code, out, err.count(said)) == (2, "", 1), err
    assert place.run("convert", PIRATE, TELEGRAM, *options, "--json")[0] == 2
    assert not list(Path.cwd().iterdir())


def test_every_wrong_option_at_once(place):
    err = place.run("convert", PIRATE, "--layers", "midle", "--rank", "0", "--dtype", "q4")[2]
    assert [said in err for said in ("rank: 0", "dtype: 'q4'", "layers midle")] == [True] * 3
