import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptrix.atomic import output
from adaptrix.errors import RefusedError, UsageError
from adaptrix.sources import local
from tests.helpers.atomic import error_code, names, put, put_folder


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with output(path) as work:
        assert work.parent == tmp_path
        assert work.suffix == path.suffix
        work.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert names(tmp_path) == ["x.safetensors"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    put_folder(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_relative_path_and_the_umask_are_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    previous = os.umask(0o027)
    try:
        put(Path("x"))
    finally:
        os.umask(previous)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def begin(path: Path, force: bool, make: Callable[[Path], None], error: type[BaseException]) -> None:
    with output(path, force=force) as work:
        make(work)
        if work.is_dir():
            (work / "inner").mkdir()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, ConnectionError])
@pytest.mark.parametrize("force", [False, True])
def test_whatever_stops_the_work_leaves_nothing(tmp_path: Path, error: type[BaseException], force: bool) -> None:
    if force:
        (tmp_path / "x").write_text("old")
    for make in (Path.touch, Path.mkdir):
        with pytest.raises(error):
            begin(tmp_path / "x", force, make, error)
    assert names(tmp_path) == (["x"] if force else [])
    assert not force or (tmp_path / "x").read_text() == "old"


def test_work_that_makes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), output(tmp_path / "x"):
        pass
    assert names(tmp_path) == []


# what exists already


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "x"
    put(path, "old")
    with pytest.raises(UsageError, match="force=True") as caught:
        put(path)
    assert error_code(caught) == "output-exists"
    assert path.read_text() == "old"
    put(path, force=True)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x"]


def test_it_says_so_before_the_work_begins(tmp_path: Path) -> None:
    put(tmp_path / "x")
    with pytest.raises(UsageError), output(tmp_path / "x"):
        pytest.fail("the work has begun")


def race(path: Path) -> None:
    with output(path) as work:
        work.write_text("new")
        path.write_text("of another process")


@pytest.mark.parametrize("links", [True, False])
def test_an_output_that_appears_during_the_work_is_kept(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x"
    with pytest.raises(UsageError):
        race(path)
    assert path.read_text() == "of another process"
    assert names(tmp_path) == ["x"]


def no_links(*args: object, **options: object) -> None:
    raise PermissionError(1, "this disk has no hard links")


def test_a_disk_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    put(tmp_path / "x")
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("before", [["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json"], []])
def test_force_replaces_an_adapters_folder(tmp_path: Path, before: list[str]) -> None:
    path = tmp_path / "a"
    path.mkdir()
    for name in before:
        (path / name).write_text("old")
    with pytest.raises(UsageError):
        put_folder(path)
    put_folder(path, force=True)
    assert names(tmp_path) == ["a"]
    assert names(path) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (path / "adapter_config.json").read_text() == "new"


OTHERS = [
    "notes.txt",
    "adapter_config.json/deep",
    ".git/adapter_config.json",
    "model-00001-of-00002.safetensors",
    "README.md",
]


def test_force_replaces_no_other_folder(tmp_path: Path) -> None:
    for number, name in enumerate(OTHERS):
        path = tmp_path / str(number)
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text("mine")
        if not (path / "adapter_config.json").exists():
            (path / "adapter_config.json").write_text("{}")
        with pytest.raises(UsageError, match="does not replace"):
            put_folder(path, force=True)
        assert (path / name).read_text() == "mine"
    assert names(tmp_path) == [str(number) for number in range(len(OTHERS))]


@pytest.fixture
def by_renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that cannot exchange two names in one step."""
    monkeypatch.setattr("adaptrix.atomic.exchange", lambda one, other: False)


@pytest.mark.usefixtures("by_renaming")
def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    put_folder(path, config="old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == path and not self.name.endswith("old"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RefusedError) as caught:
        put_folder(path, force=True)
    assert error_code(caught) == "disk-full"
    assert names(tmp_path) == ["a"]
    assert (path / "adapter_config.json").read_text() == "old"


@pytest.mark.usefixtures("by_renaming")
def test_force_replaces_a_folder_where_two_names_cannot_be_exchanged(tmp_path: Path) -> None:
    put_folder(tmp_path / "a", config="old")
    (tmp_path / ".a.adaptrix-old").mkdir()  # of a run that was killed after both renames
    put_folder(tmp_path / "a", force=True)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "new"


def killed_at_rename(path: Path, number: int) -> None:
    """Replaces a folder in a process that is killed right after its ``number``-th rename."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    left, rename = iter(range(1, number)), Path.rename

    def counted(self: Path, target: Path) -> Path:
        done = rename(self, target)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", counted)
        put_folder(path, force=True)
    os._exit(1)


def test_a_kill_at_the_exchange_leaves_the_new_folder(tmp_path: Path) -> None:
    put_folder(tmp_path / "a", config="old")
    killed_at_rename(tmp_path / "a", 1)
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "new"


@pytest.mark.usefixtures("by_renaming")
@pytest.mark.parametrize(("number", "left"), [(1, None), (2, "new"), (3, "new")])
def test_after_a_kill_between_renames_the_next_run_finds_the_old_folder(
    tmp_path: Path, number: int, left: str | None
) -> None:
    path = tmp_path / "a"
    put_folder(path, config="old")
    killed_at_rename(path, number)
    assert path.exists() == (left is not None)
    if left is None:
        with pytest.raises(UsageError, match=r"The folder as it was is .*\.a\.adaptrix-old"):
            local.fetch(str(path), [])
    with pytest.raises(UsageError, match="this exists already"):
        put_folder(path)
    assert (path / "adapter_config.json").read_text() == (left or "old")
    put_folder(path, force=True, config="newest")
    assert (path / "adapter_config.json").read_text() == "newest"
    assert not (tmp_path / ".a.adaptrix-old").exists()


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    put(tmp_path / "file", "old")
    put_folder(tmp_path / "folder", config="old")
    with pytest.raises(UsageError, match="is a folder"):
        put(tmp_path / "folder", force=True)
    with pytest.raises(UsageError, match="is a file"):
        put_folder(tmp_path / "file", force=True)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_of_a_link_the_target_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    put(tmp_path / "file", "old")
    put_folder(tmp_path / "folder", config="old")
    for name in ("file", "folder"):
        (tmp_path / f"to-{name}").symlink_to(name)
        with pytest.raises(UsageError, match="exists"):
            put(tmp_path / f"to-{name}")
    put(tmp_path / "to-file", force=True)
    put_folder(tmp_path / "to-folder", force=True)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "adapter_config.json").read_text() == "new"
    assert names(tmp_path) == ["file", "folder", "to-file", "to-folder"]
    assert (tmp_path / "to-file").is_symlink()
    assert (tmp_path / "to-folder").is_symlink()


def test_a_link_into_another_folder_does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(UsageError, match="does not replace"):
        put_folder(tmp_path / "link", force=True)
    assert names(tmp_path / "mine") == ["notes.txt"]


def test_what_a_killed_run_left_in_a_folder_is_replaced_with_it(tmp_path: Path) -> None:
    put_folder(tmp_path / "a")
    begun = output(tmp_path / "a" / "state.safetensors")
    begun.__enter__().write_text("half")  # never left, as by a SIGKILL
    (left,) = (name for name in names(tmp_path / "a") if name.startswith("."))
    put_folder(tmp_path / "a", force=True)
    assert names(tmp_path / "a") == ["adapter_config.json", "adapter_model.safetensors"]
    for mine in (".adaptrix-notes", f"{left}.d"):
        (tmp_path / "a" / mine).mkdir() if mine.endswith(".d") else (tmp_path / "a" / mine).touch()
        with pytest.raises(UsageError, match="does not replace"):
            put_folder(tmp_path / "a", force=True)


@pytest.mark.parametrize("target", ["/dev/null", "pipe", "socket", "to-pipe", "nowhere"])
@pytest.mark.parametrize("linked", [True, False])
def test_a_device_a_pipe_a_socket_and_a_link_to_nothing_are_never_replaced(
    tmp_path: Path, target: str, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    os.mkfifo("pipe")
    os.symlink("pipe", "to-pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    out = tmp_path / target
    if linked or target == "nowhere":
        (out := tmp_path / "link").symlink_to(target)
    before = names(tmp_path)
    said = {"/dev/null": "a device", "socket": "a socket", "nowhere": "not there"}.get(target, "a named pipe")
    for make in (put, put_folder):
        with pytest.raises(UsageError, match=said) as caught:
            make(out, force=True)
        assert error_code(caught) == "output-invalid"
    assert names(tmp_path) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
