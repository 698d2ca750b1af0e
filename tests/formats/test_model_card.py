"""The card of a PEFT folder goes along to the PEFT folder that is made of it."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.command_line import placed

PIRATE = Path(__file__).parents[2] / "examples" / "tiny" / "adapters" / "pirate"
CARD = b"---\r\nlicense: mit\n---\n# Caf\xe9, not even UTF-8\n"


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    found = placed(tmp_path, capsys, monkeypatch)
    shutil.copytree(PIRATE, tmp_path / "adapter")
    (tmp_path / "adapter/README.md").write_bytes(CARD)
    return found


def test_byte_for_byte_and_again_with_force(place):
    for more in ([], ["--force"]):
        assert place.run("convert", place.folder / "adapter", "--to", "peft", "-o", "x", *more)[0] == 0
        assert Path("x/README.md").read_bytes() == CARD


def test_none_where_there_was_none_and_none_through_an_injection_file(place):
    assert place.run("convert", PIRATE, "--to", "peft", "-o", "x")[0] == 0
    assert place.run("convert", place.folder / "adapter", "-o", "y.adaptrix.safetensors")[0] == 0
    assert place.run("convert", "y.adaptrix.safetensors", "--to", "peft", "-o", "z")[0] == 0
    assert not Path("x/README.md").exists()
    assert not Path("z/README.md").exists()


def test_a_sum_has_the_card_of_none(place):
    assert place.run("combine", place.folder / "adapter", PIRATE, "--to", "peft", "-o", "x")[0] == 0
    assert not Path("x/README.md").exists()


def test_a_large_one_stays_and_is_told(place):
    (place.folder / "adapter/README.md").write_bytes(b"x" * ((1 << 20) + 1))
    code, _, err = place.run("convert", place.folder / "adapter", "--to", "peft", "-o", "x")
    assert (code, "README.md: it has 1.05 MB and does not go along" in err) == (0, True)
    assert not Path("x/README.md").exists()


def test_a_link_to_another_file_of_this_disk_is_no_card(place):
    secret = place.folder / "secret"
    secret.write_text("token")
    card = place.folder / "adapter/README.md"
    card.unlink()
    card.symlink_to(secret)
    assert place.run("convert", place.folder / "adapter", "--to", "peft", "-o", "x")[0] == 0
    assert not Path("x/README.md").exists()


def test_a_file_of_the_hubs_cache_is_a_card(place):
    home = place.folder / "models--o--n"
    (home / "blobs").mkdir(parents=True)
    shutil.copytree(place.folder / "adapter", home / "snapshots/abc")
    (home / "snapshots/abc/README.md").rename(home / "blobs/123")
    (home / "snapshots/abc/README.md").symlink_to("../../blobs/123")
    assert place.run("convert", home / "snapshots/abc", "--to", "peft", "-o", "x")[0] == 0
    assert Path("x/README.md").read_bytes() == CARD
