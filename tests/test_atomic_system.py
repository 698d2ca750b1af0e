"""What the system objects to: full disks, permissions, names, Ctrl-C."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptrix.atomic import output
from adaptrix.errors import RefusedError, UsageError
from tests.helpers.atomic import error_code, names, put, put_folder

# what the system objects to


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/..", "a\0b"])
def test_a_path_that_is_no_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        put(Path(name), force=True)
    assert error_code(caught) == "output-invalid"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for parent in ("missing", "file"):
        with pytest.raises(UsageError, match=parent) as caught:
            put(tmp_path / parent / "x")
        assert error_code(caught) == "output-invalid"


def test_a_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        put(tmp_path / ("x" * 300))
    assert error_code(caught) == "output-invalid"


def test_a_name_as_long_as_the_disk_allows_will_do(tmp_path: Path) -> None:
    put(tmp_path / ("x" * 255))
    put_folder(tmp_path / ("y." + "y" * 253))
    assert len(names(tmp_path)) == 2


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RefusedError):
        put(tmp_path / "a" / "x")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from adaptrix.atomic import output
from adaptrix.errors import RefusedError
if os.getuid() == 0:
    os.setuid(65534)
try:
    with output(Path(sys.argv[1])) as work:
        work.write_text("new")
except RefusedError as error:
    print(error.problems[0].code)
"""


def test_no_permission(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("closed")
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(folder / "x")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "permission-denied"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_old_output_and_no_rest(small_disk: Path) -> None:
    put(small_disk / "x", "old")
    with pytest.raises(RefusedError) as caught:
        put(small_disk / "x", "new" * 100_000, force=True)
    assert error_code(caught) == "disk-full"
    assert str(small_disk / "x") in str(caught.value)
    assert ".adaptrix" not in str(caught.value)
    assert names(small_disk) == ["x"]
    assert (small_disk / "x").read_text() == "old"


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(RefusedError) as caught:
        put(small_disk / "x")
    assert error_code(caught) == "permission-denied"


LIMITED = """
import resource, signal, sys
from pathlib import Path
from adaptrix.atomic import output
from adaptrix.errors import RefusedError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    with output(Path(sys.argv[1])) as work:
        work.write_bytes(bytes(100_000))
except RefusedError as error:
    print(error.problems[0].code)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit here")
def test_a_file_too_large_for_the_system(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "disk-full"
    assert names(tmp_path) == []


INTERRUPTED = """
import sys, time
from pathlib import Path
from adaptrix.atomic import output
with output(Path(sys.argv[1]), force=True) as work:
    with open(work, "wb") as file:
        print("begun", flush=True)
        for _ in range(1000):
            file.write(bytes(4096))
            time.sleep(0.01)
"""


def test_ctrl_c_half_way_leaves_the_old_output_and_no_rest(tmp_path: Path) -> None:
    put(tmp_path / "x", "old")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "x")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    assert len(names(tmp_path)) == 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_an_error_of_a_source_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), output(tmp_path / "x") as work:
        work.write_bytes((tmp_path / "missing").read_bytes())
    with pytest.raises(RefusedError, match="source"), output(tmp_path / "x"):
        raise PermissionError(13, "Permission denied", str(tmp_path / "source"))
    assert names(tmp_path) == []
