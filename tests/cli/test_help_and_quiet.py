"""The first page of help, and commands that are asked to say nothing but errors."""

import re
import warnings
from pathlib import Path

import click
import pytest

from adaptrix import cli
from adaptrix.cli import app
from adaptrix.errors import AdaptrixWarning, Problem, UsageError
from tests.helpers.command_line import placed

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, TELEGRAM, BASE = TINY / "adapters" / "pirate", TINY / "adapters" / "telegram", TINY / "base"
DEMO = Path(__file__).parents[1] / "data" / "demo"


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


def test_help_is_grouped_and_begins_with_a_look(capsys):
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    groups = re.findall(r"^([A-Z][^:\n]*):?.*:$", out, re.M)
    assert groups[:4] == ["Options", "Look", "Convert", "On a live model (in Python"]
    commands = re.findall(r"^  ([a-z][a-z0-9-]+)  ", out, re.M)
    assert commands[:2] == ["inspect", "check"]
    with click.Context(app) as context:
        assert commands == app.list_commands(context)
    assert out.count("    adaptrix ") == 2
    assert "adaptrix.attach(model" in out


QUIET = {
    "inspect": [PIRATE],
    "check": [PIRATE, "--base", BASE],
    "diff": [PIRATE, PIRATE],
    "convert": [PIRATE, "--layers", "middle"],
    "merge": [PIRATE, BASE],
    "combine": [PIRATE, TELEGRAM, "--base", BASE],
    "resize": [PIRATE, "--rank", "2"],
    "fidelity": [PIRATE, BASE, "--text", "words.txt", "--layers", "middle"],
    "architectures": [],
    "architectures show": ["llama"],
    "plugins": [],
    "explain": ["shape"],
}


@pytest.mark.parametrize("command", QUIET)
def test_quiet_is_silent_where_all_is_well(command, place):
    Path("words.txt").write_text("The old sailor walked to the harbour. " * 5)
    assert place.run(*command.split(), *QUIET[command], "-q") == (0, "", "")


def test_quiet_warns_of_nothing_and_says_errors(place):
    """The plan of this file leaves deltas out, of which a merge warns."""
    assert place.run("convert", PIRATE, "--layers", "middle", "-o", "x.adaptrix.safetensors", "-q") == (0, "", "")
    assert "warning" in place.run("merge", "x.adaptrix.safetensors", BASE, "-o", "loud")[2]
    assert place.run("merge", "x.adaptrix.safetensors", BASE, "-o", "quiet", "-q") == (0, "", "")
    code, out, err = place.run("check", PIRATE, "--base", DEMO / "base", "-q")
    assert (code, out) == (1, "")
    assert all(line.startswith(("error: ", f"{PIRATE}: ")) for line in err.splitlines())


def test_every_command_that_prints_takes_quiet_and_is_tried():
    tried = {command.split()[0] for command in QUIET}
    with click.Context(app) as context:
        for name in app.list_commands(context):
            command = app.get_command(context, name)
            own = name in cli._COMMANDS
            quiet = any("--quiet" in option.opts for option in command.params)
            assert not own or not quiet or name in tried | {"extract"}
            assert not own or quiet or name == "completion"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_from_inside_the_work_is_shown_as_a_problem_is(quiet, place, monkeypatch):
    def draft(*_: object) -> None:
        warnings.warn("odd", AdaptrixWarning, stacklevel=1)
        raise UsageError(Problem("option", "x", "bad"))

    monkeypatch.setattr("adaptrix.cli.merge.draft", draft)
    code, _, err = place.run("merge", PIRATE, BASE, *(["-q"] if quiet else []))
    said = "" if quiet else "warning: odd\n"
    assert (code, err) == (2, f"{said}error: x: bad\n")
