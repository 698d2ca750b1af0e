"""Of a repository, nothing is read that is not in the cache of the Hub's client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PIRATE = Path(__file__).parents[2] / "examples" / "tiny" / "adapters" / "pirate"
COMMIT = "0123456789" * 4


def snapshot(repo: Path) -> Path:
    """A repository in a cache as the client lays it out: blobs, and links to them."""
    folder = repo / "snapshots" / COMMIT
    for part in (folder, repo / "refs", repo / "blobs"):
        part.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for file in PIRATE.iterdir():
        shutil.copy(file, repo / "blobs" / file.name)
        (folder / file.name).symlink_to(f"../../blobs/{file.name}")
    return folder


def check(cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "adaptrix", "check", "owner/name"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=cache)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_out_of_the_cache_is_not_read(name, tmp_path):
    cache = tmp_path / "cache"
    folder = snapshot(cache / "models--owner--name")
    assert check(cache).returncode == 0
    (folder / name).unlink()
    (folder / name).symlink_to(shutil.copy(PIRATE / name, tmp_path / "secret"))
    done = check(cache)
    assert done.returncode == 1
    assert f"leads to {os.path.realpath(tmp_path / 'secret')}, which is outside its cache" in done.stderr + done.stdout


def test_a_repository_may_be_on_another_disk(tmp_path):
    (tmp_path / "cache").mkdir()
    snapshot(tmp_path / "disk" / "name")
    (tmp_path / "cache" / "models--owner--name").symlink_to(tmp_path / "disk" / "name")
    assert check(tmp_path / "cache").returncode == 0
