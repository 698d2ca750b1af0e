"""What the system objects to while a checkpoint is converted: permissions, full disks, signals."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.draft import CONFIG, Draft
from tests.helpers.command_line import placed


@pytest.fixture
def place(tmp_path, capsys, monkeypatch):
    return placed(tmp_path, capsys, monkeypatch)


RUN = "import sys; from adaptrix.cli import run; {before}; sys.exit(run(sys.argv[1:]))"


def process(before, *args, **options):
    return subprocess.run(
        [sys.executable, "-c", RUN.format(before=before), "convert", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users here")
def test_a_folder_that_may_not_be_written_to():
    with tempfile.TemporaryDirectory() as name:  # pytest's own may only be entered by whom it runs as
        folder = Path(name)
        folder.chmod(0o755)
        Draft().write(folder)
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o555)
        # nobody may not read the interpreter's own folders everywhere: what is needed is imported before
        before = f"run(['convert', {name!r} + '/adapter', '-q', '-o', {name!r} + '/x']); import os"
        done = process(
            f"{before}; os.getuid() or os.setuid(65534)",
            folder / "adapter",
            "-o",
            folder / "closed/x.adaptrix.safetensors",
        )
        assert done.returncode == 1, done.stderr
        assert f"{folder}/closed" in done.stderr
        assert "permission denied. Write elsewhere" in done.stderr
        assert os.listdir(folder / "closed") == []


def test_a_file_larger_than_the_system_allows(place):
    Draft().write(place.folder)
    before = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))"
    )
    done = process(before, place.folder / "adapter")
    assert done.returncode == 1
    assert "adapter.adaptrix.safetensors: the system does not allow a file this large" in done.stderr
    assert os.listdir() == []


@pytest.mark.parametrize("to", ["injection", "peft"])
def test_a_full_disk(to, place):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "."], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        os.chdir("../out")  # what was mounted lies over the folder that this process is in
        draft = Draft()
        draft.config["note"] = "x" * 20_000
        draft.write(place.folder)
        code, _, err = place.run("convert", place.folder / "adapter", "--to", to, "-o", "x")
        assert code == 1
        assert "x: the disk is full. Free some space" in err.replace(f"x/{CONFIG}", "x")
        assert os.listdir() == []
    finally:
        os.chdir("..")
        subprocess.run(["umount", place.folder / "out"], check=True)


SLOW = """
import sys, time, adaptrix.cli as cli, adaptrix.formats.safetensors_file as file
from concurrent.futures import ThreadPoolExecutor
real = file.write
def slow(path, *rest):
    real(path, *rest)
    print("writing", flush=True)
    time.sleep(WHILE)
file.write = slow
ThreadPoolExecutor().submit(time.sleep, WHILE)  # as one that computes digests
sys.argv[1:] = ["convert", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("to", ["injection", "peft"])
def test_a_signal_to_end_leaves_nothing_behind(name, code, to, place):
    Draft().write(place.folder)
    before = place.files()
    with subprocess.Popen(
        [sys.executable, "-c", SLOW.replace("WHILE", "60"), str(place.folder / "adapter"), "--to", to, "-o", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "writing\n"
        assert len(os.listdir()) == 1
        child.send_signal(getattr(signal, name))
        _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert err == "adaptrix: terminated; nothing was left half-written\n"
    assert place.files() == before


def test_a_signal_that_nohup_ignores_stays_ignored(place):
    Draft().write(place.folder)
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW.replace("WHILE", "1")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(place.folder / "adapter")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGHUP)
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert os.listdir() == ["adapter.adaptrix.safetensors"]
