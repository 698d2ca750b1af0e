"""The README's commands, run in order, and its Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adaptrix
from tests.helpers.hub_server import hub  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DEMO = ROOT / "tests" / "data" / "demo"
TINY = ROOT / "examples" / "tiny"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DEMO / "adapter", tmp_path / "my-lora")
    shutil.copytree(DEMO / "adapter", tmp_path / "their-lora")
    shutil.copytree(DEMO / "base", tmp_path / "base")
    shutil.copytree(TINY / "base", tmp_path / "llama")
    adaptrix.merge(TINY / "adapters" / "pirate", TINY / "base", tmp_path / "tuned")
    return tmp_path


@pytest.fixture
def env(tmp_path, hub, alpaca):  # noqa: F811  # the fixture
    hub.add_repo("tloen/alpaca-lora-7b", {path.name: path.read_bytes() for path in alpaca.iterdir()})
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**hub.env(tmp_path), "PATH": path, "PYTHONUTF8": "1"}


@pytest.fixture(scope="session")
def alpaca(tmp_path_factory):
    """The published form at full size: what the README shows is what is printed."""
    folder = tmp_path_factory.mktemp("alpaca") / "alpaca-lora-7b"
    subprocess.run([sys.executable, ROOT / "benchmarks" / "alpaca.py", folder], check=True, timeout=120)
    return folder


def test_every_command_does_what_is_shown(folder, env):
    commands = 0
    for block in blocks("console"):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, (command, done.stderr)
            if shown:
                assert done.stdout == shown, command
            commands += 1
    assert commands >= 9


def test_the_python_runs(folder, env):
    program, live = blocks("python")
    compile(live, "README", "exec")  # test_attach.py and test_swapping.py in tests/runtime run what it shows
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_target_and_file_that_is_mentioned_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(((?!https:)[^)]+)\)", README):
        assert (ROOT / link).exists(), link
