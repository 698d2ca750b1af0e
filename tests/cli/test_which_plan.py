"""Commands that meet a file whose plan leaves deltas out, or changes them, say which plan acts."""

from pathlib import Path

import pytest

import adaptrix
from tests.helpers.command_line import placed

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, BASE = TINY / "adapters" / "pirate", TINY / "base"


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    Path(tmp_path / "text.txt").write_text("The old sailor walked to the harbour. " * 5)
    return placed(tmp_path, capsys, monkeypatch)


def half(place, *more):
    """A file in which layer 4 alone acts."""
    assert place.run("convert", PIRATE, "--base", BASE, "--layers", "4", "-o", "x.adaptrix.safetensors", *more)[0] == 0
    return "x.adaptrix.safetensors"


def test_middle_is_named_after_a_conversion(place):
    out = place.run("convert", Path(__file__).parents[1] / "data/demo/adapter", "--layers", "middle")[1]
    assert "82.1% of ‖ΔW‖² (middle-layer injection); adaptrix fidelity measures the cost" in out


def test_a_peft_folder_has_every_delta_act_and_says_so(place):
    file = half(place)
    code, out, err = place.run("convert", file, "--to", "peft", "-o", "all")
    assert (code, "plan all" in out) == (0, True)
    assert "its file's plan 4 is not followed, by which 7 of 14 deltas act" in err
    assert "not followed" not in place.run("convert", file, "--to", "peft", "-o", "x", "--prune")[2]
    assert "not followed" not in place.run("convert", file, "--to", "peft", "-o", "y", "--layers", "all")[2]
    with pytest.warns(adaptrix.AdaptrixWarning, match="prune=True keeps the plan"):
        adaptrix.convert(file, "z", to="peft")


def test_nothing_to_redistribute_is_said(place):
    said = "no delta is left out, so --redistribute had nothing to fold"
    assert said in place.run("convert", PIRATE, "--redistribute", "nearest")[2]
    assert said not in place.run("convert", PIRATE, "--redistribute", "nearest", "--layers", "4", "-o", "x")[2]


def test_a_policy_by_the_name_of_a_changed_plan_is_told_apart(place):
    file = half(place, "--redistribute", "nearest")
    line = ["fidelity", file, BASE, "--text", place.folder / "text.txt", "--layers", "4"]
    code, _, err = place.run(*line)
    assert (code, "the file's own plan 4 changes them. --layers own measures it" in err) == (0, True)
    assert "The row own has it" in place.run(*line, "--layers", "own")[2]


def test_a_plan_that_was_asked_for_is_no_surprise(place, recwarn):
    """The plans of a measurement and of a verification are attached one by one: nobody is warned of each."""
    file = half(place)
    code, _, err = place.run("fidelity", file, BASE, "--text", place.folder / "text.txt", "--layers", "4")
    assert (code, "warning" in err) == (0, False)
    _, out, err = place.run("merge", file, BASE, "-o", "merged", "--verify")
    assert "verified against the base with the adapter attached, plan 4: " in out
    assert err.count("plan 4 is followed") == 1
    assert [str(one.message) for one in recwarn if isinstance(one.message, adaptrix.AdaptrixWarning)] == []
