"""What somebody copies from ``inspect`` is never broken over lines: hashes, paths, addresses."""

import shutil
from pathlib import Path

import pytest

import adaptrix
from tests.helpers.command_line import placed

PIRATE = Path(__file__).parents[2] / "examples" / "tiny" / "adapters" / "pirate"
FAR = "folder-with-a-rather-long-name/and another one with spaces/in-it"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_hashes_and_paths_are_whole(width, tmp_path, capsys, monkeypatch):
    place = placed(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    shutil.copytree(PIRATE, place.folder / "out" / FAR)
    code, out, _ = place.run("inspect", FAR)
    lines = out.splitlines()
    provenance = adaptrix.load(FAR).provenance
    assert code == 0
    for whole in (FAR, *provenance.files, *provenance.files.values(), "examples/tiny/base"):
        assert any(whole in line for line in lines), whole
    values = [line for line in lines if line.startswith(("dims", "config", " " * 14))]
    long = (FAR, *provenance.files, *provenance.files.values())
    assert all(len(line) <= width for line in values if not any(part in line for part in long))
    assert [word for word in ("deltas", "layers", "out × in", "rank", "scale", "dtype") if word not in out] == []
