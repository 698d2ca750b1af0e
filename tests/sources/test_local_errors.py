"""What the local source says about what is no file, no name, no config, or not for us to read."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from adaptrix.errors import RefusedError, UsageError
from adaptrix.sources import local
from tests.helpers.sources import BIN, CONFIG, SAFE, fetch, full_model, put, refused


class TestWhatIsNoFile:
    def test_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / SAFE)
        assert refused(tmp_path / SAFE) == (
            "file-unreadable",
            f"{tmp_path / SAFE}: it is a named pipe; expected a folder or a file",
        )

    def test_a_device(self) -> None:
        assert "it is a device" in refused("/dev/null")[1]

    def test_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # a socket's path has room for 108 characters only
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
            assert "it is a socket" in refused("s")[1]

    def test_a_broken_link(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("gone")
        assert refused(tmp_path / "a")[0] == "file-missing"

    def test_a_loop(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("a")
        assert refused(tmp_path / "a")[0] == "file-missing"

    def test_a_pipe_and_a_loop_in_a_folder(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        assert "only loop (a link to loop, which is not there), pipe (a named pipe)" in refused(tmp_path)[1]


class TestNames:
    def test_empty(self) -> None:
        assert refused("", UsageError)[0] == "address"

    @pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[2J", "a\udcff"])
    def test_unprintable(self, tmp_path: Path, name: str) -> None:
        if "\0" not in name:
            put(tmp_path / name, (CONFIG, BIN))
        code, text = refused(f"{tmp_path}/{name}", UsageError)
        assert code == "address"
        assert text.isprintable()

    @pytest.mark.parametrize(
        "uri", ["./foo", "/no/such", "~/no", "../x/y", "x.safetensors", "tests/x.json", "owner/name/", "a\\b", ".."]
    )
    def test_paths_are_claimed_whether_they_exist_or_not(self, uri: str, tmp_path: Path, monkeypatch: Any) -> None:
        put(tmp_path / "tests", ())
        monkeypatch.chdir(tmp_path)
        assert local.claims(uri)

    @pytest.mark.parametrize(
        "uri",
        [
            *("tloen/alpaca-lora-7b", "owner/name@v1.0", "hf://a/b", "https://hub.test/a/b/", "gpt2"),
            *("owner/name/a.adaptrix.safetensors", "owner/name/sub/adapter_config.json"),
        ],
    )
    def test_repositories_are_not_claimed(self, uri: str) -> None:
        assert not local.claims(uri)

    def test_a_folder_comes_before_a_repository_of_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(tmp_path / "tloen/alpaca-lora-7b", (CONFIG, BIN))
        monkeypatch.chdir(tmp_path)
        assert fetch("tloen/alpaca-lora-7b").name == "alpaca-lora-7b"

    def test_missing_with_a_name_like_it(self, tmp_path: Path) -> None:
        put(tmp_path / "alpaca-lora", ())
        code, text = refused(tmp_path / "alpaca_lora", UsageError)
        assert code == "file-missing"
        assert (
            f"there is no alpaca_lora in {tmp_path}; expected a folder or a file. Did you mean {tmp_path}/alpaca-lora?"
            in text
        )

    def test_missing_says_where_the_path_ends(self, tmp_path: Path) -> None:
        put(tmp_path, ("x", "y"))
        assert (
            f"there is no no in {tmp_path}; expected a folder or a file. There is x, y in"
            in refused(tmp_path / "no/b/c", UsageError)[1]
        )
        assert f"{tmp_path}/x is no folder" in refused(tmp_path / "x/b", UsageError)[1]

    def test_missing_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "there is no foo here" in refused("./foo", UsageError)[1]

    def test_far_too_long(self, tmp_path: Path) -> None:
        assert refused(tmp_path / ("x" * 300), UsageError)[0] == "file-missing"


class TestPermission:
    """Stand-ins for the system's no: tests may run as root, whom it does not say no to."""

    def test_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(path: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", deny)
        assert refused(tmp_path)[0] == "permission-denied"

    def test_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(tmp_path, (CONFIG, BIN))
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != BIN)
        code, text = refused(tmp_path)
        assert (code, BIN in text) == ("permission-denied", True)

    def test_a_disk_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "scandir", fail)
        assert refused(tmp_path)[0] == "file-unreadable"


class TestConfig:
    def test_of_a_base(self, tmp_path: Path) -> None:
        put(tmp_path, full_model())
        assert local.config(str(tmp_path)) == local.config(f"{tmp_path}/config.json") == {"model_type": "llama"}

    def test_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        put(tmp_path, {"config.json": b"\xef\xbb\xbf{}"})
        assert local.config(str(tmp_path)) == {}

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", "json-invalid"),
            (b"\xff", "json-invalid"),
            (b'{"a": ' + b"9" * 5000 + b"}", "json-invalid"),
            (b"<html>", "json-invalid"),
            (b"[]", "json-invalid"),
            (b"3", "json-invalid"),
            (b"null", "json-invalid"),
            (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "json-invalid"),
            (b'{"a":' * 100_000, "json-invalid"),
            (b"[" * 100_000, "json-invalid"),
            (b'"' + b"x" * 10_000_000 + b'"', "file-too-large"),
        ],
        ids=lambda value: value[:12] if isinstance(value, bytes) else None,
    )
    def test_what_is_no_config(self, tmp_path: Path, data: bytes, code: str) -> None:
        put(tmp_path, {"config.json": data})
        with pytest.raises(RefusedError) as caught:
            local.config(str(tmp_path))
        assert caught.value.problems[0].code == code
        assert caught.value.problems[0].where == f"{tmp_path}/config.json"

    def test_missing(self, tmp_path: Path) -> None:
        put(tmp_path, ("model.safetensors",))
        with pytest.raises(RefusedError, match=r"there is no config\.json in it, only model\.safetensors"):
            local.config(str(tmp_path))

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="there is no x in"):
            local.config(str(tmp_path / "x"))

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "config.json")
        with pytest.raises(RefusedError, match="it is not a regular file"):
            local.config(str(tmp_path))
