"""What a careless or an unlucky command line must not do: replace what is no output, or fail for its streams."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from adaptrix.cli import run

ADAPTER = Path(__file__).parents[1] / "data" / "demo" / "adapter"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The demo's base exists nowhere: nothing is to be looked up."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.skipif(os.geteuid() != 0, reason="making a device node needs root")
def test_a_device_is_never_replaced(tmp_path):
    node = tmp_path / "node"
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert run(["convert", str(ADAPTER), "-o", str(node), "--force", "-q"]) == 2
    assert stat.S_ISCHR(node.stat().st_mode)


def test_a_pipe_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert run(["convert", str(ADAPTER), "-o", str(pipe), "--force", "-q"]) == 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_no_output_goes_into_another_source_of_the_run(tmp_path):
    for name in ("one", "two"):
        shutil.copytree(ADAPTER, tmp_path / name)
    before = sorted(os.listdir(tmp_path / "two"))
    assert run(["convert", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(tmp_path / "two"), "-q"]) == 2
    assert sorted(os.listdir(tmp_path / "two")) == before


def test_the_config_of_the_base_is_never_replaced(tmp_path):
    shutil.copytree(ADAPTER.parent / "base", tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    before = config.read_bytes()
    args = ["convert", str(ADAPTER), "--base", str(tmp_path / "base"), "-o", str(config), "--force", "-q"]
    assert run(args) == 2
    assert config.read_bytes() == before


def test_the_weights_that_are_not_read_are_named(tmp_path, capsys):
    shutil.copytree(ADAPTER, tmp_path / "both")
    (tmp_path / "both" / "adapter_model.bin").write_bytes(b"never read")
    assert run(["check", str(tmp_path / "both")]) == 0
    assert "adapter_model.bin: it is not read" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [">&-", "2>&-", ">/dev/full"])
def test_streams_that_cannot_be_written(stream, tmp_path):
    command = f"{sys.executable} -m adaptrix check {ADAPTER} {stream}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert "internal" not in done.stderr
    assert done.returncode == (1 if "full" in stream else 0)


def test_signs_that_the_terminal_lacks(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "adaptrix", "inspect", ADAPTER]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ranges", [[[0, 99_999_999]], [[5, 2]], [[-1, 3]]])
def test_layers_are_not_replicated_without_end(ranges, tmp_path, capsys):
    shutil.copytree(ADAPTER, tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_replication": ranges}))
    assert run(["check", str(tmp_path / "a")]) == 1
    assert "layer_replication" in capsys.readouterr().err
