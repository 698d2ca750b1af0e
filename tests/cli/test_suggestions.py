"""A word or a path that is nearly right gets the right one named."""

from pathlib import Path

import pytest

from tests.helpers.command_line import placed

DEMO = Path(__file__).parents[1] / "data" / "demo"


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


WORDS = {
    "policy": (["convert", DEMO / "adapter", "--layers", "midle"], "middle"),
    "policy in capitals": (["convert", DEMO / "adapter", "--layers", "MIDDLE"], "middle"),
    "policy with a number": (["convert", DEMO / "adapter", "--layers", "enrgy:3"], "energy:3"),
    "format": (["convert", DEMO / "adapter", "--to", "PEFT"], "peft"),
    "dtype": (["convert", DEMO / "adapter", "--dtype", "blfoat16"], "bfloat16"),
    "dtype of a merge": (["merge", DEMO / "adapter", "--base", DEMO / "base", "--dtype", "bf61"], "bf16"),
    "method": (["combine", DEMO / "adapter", "--method", "tise"], "ties"),
    "family": (["architectures", "show", "lama"], "llama"),
    "code": (["explain", "shpe"], "shape"),
    "command": (["convrt", "x"], "adaptrix convert"),
    "option": (["convert", "x", "--lyers", "all"], "--layers"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_misspelt_word(name, place):
    args, meant = WORDS[name]
    code, out, err = place.run(*args)
    assert (code, out) == (2, "")
    assert "id you mean" in err
    assert meant in err.partition("id you mean")[2]


def test_a_word_like_no_other_gets_no_suggestion(place):
    assert "id you mean" not in place.run("convert", DEMO / "adapter", "--layers", "xyzzy")[2]


PATHS = {
    "adapter": (["check", DEMO / "adaptr"], DEMO / "adapter"),
    "a folder on the way": (["check", DEMO.parent / "dmo" / "adapter"], DEMO / "adapter"),
    "base": (["check", DEMO / "adapter", "--base", DEMO / "bse"], DEMO / "base"),
    "base of a merge": (["merge", DEMO / "adapter", "--base", DEMO / "bse"], DEMO / "base"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_mistyped_path(name, place):
    args, meant = PATHS[name]
    code, _, err = place.run(*args)
    assert code in (1, 2)
    assert f"Did you mean {meant}?" in err


def test_a_relative_path_whose_folders_are_here_is_no_repository(place):
    (place.folder / "out/loras/mine/maths").mkdir(parents=True)
    code, _, err = place.run("check", "loras/mine/math")
    assert code == 2
    assert "Did you mean loras/mine/maths?" in err


def test_a_name_that_could_be_a_repository_is_asked_for_and_then_suggested(place):
    (place.folder / "out/loras/maths").mkdir(parents=True)
    code, _, err = place.run("check", "loras/math")
    assert code == 3
    assert "Did you mean loras/maths?" in err


def test_a_text_to_measure_on(place):
    (place.folder / "out/corpus.txt").write_text("words")
    _, _, err = place.run("fidelity", DEMO / "adapter", "--base", DEMO / "base", "--text", "corpsu.txt")
    assert "Did you mean corpus.txt?" in err
