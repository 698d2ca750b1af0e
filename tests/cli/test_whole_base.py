"""``merge SRC BASE`` and ``merge SRC --base BASE`` are the same; two bases are a mistake."""

from pathlib import Path

import pytest

from tests.helpers.command_line import placed

TINY = Path(__file__).parents[2] / "examples" / "tiny"
PIRATE, BASE = TINY / "adapters" / "pirate", TINY / "base"


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


def test_both_ways_write_the_same(place):
    assert place.run("merge", PIRATE, BASE, "-o", "made/one")[0] == 2  # no slash: the folder around it is not made
    assert place.run("merge", PIRATE, BASE, "-o", "one/")[0] == 0
    assert place.run("merge", PIRATE, "--base", BASE, "-o", "two")[0] == 0
    assert place.run("merge", PIRATE, BASE, "--base", f"{BASE}/", "-o", "three")[0] == 0
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("one/pirate-merged", "two", "three")]
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("command", [["merge"], ["fidelity", "--text", __file__], ["extract"]])
def test_two_bases_or_none_are_a_mistake(command, place):
    code, out, err = place.run(*command, PIRATE)
    assert (code, out, "Missing option '--base', or the argument BASE." in err) == (2, "", True)
    code, out, err = place.run(*command, PIRATE, BASE, "--base", TINY)
    assert (code, out, "Two bases" in err) == (2, "", True)
