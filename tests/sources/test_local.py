"""The local source: what it takes, and what it says about everything else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import adaptrix
from adaptrix.records import Bundle, Format
from adaptrix.sources import local
from tests.helpers.command_line import offline
from tests.helpers.format_stand_ins import FORMATS, INJECTION
from tests.helpers.sources import BIN, CONFIG, SAFE, alpaca, fetch, full_model, put, refused, safetensors_bytes


def test_a_published_adapter_is_its_two_files(tmp_path: Path) -> None:
    folder = put(alpaca.write(tmp_path / "alpaca-lora-7b", 2, 16, 2), ("README.md", "tokenizer.json"))
    bundle = fetch(folder)
    assert bundle == Bundle(str(folder), "alpaca-lora-7b", {CONFIG: folder / CONFIG, BIN: folder / BIN})
    assert list(bundle.sha256) == [CONFIG, BIN]


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    assert list(fetch(put(tmp_path / "a", (BIN, SAFE, CONFIG))).files) == [CONFIG, SAFE]


def test_a_file_of_links_as_in_a_cache(tmp_path: Path) -> None:
    blobs = put(tmp_path / "blobs", ("1", "2"))
    folder = put(tmp_path / "snapshots", ())
    for name, blob in ((CONFIG, "1"), (SAFE, "2")):
        (folder / name).symlink_to(blobs / blob)
    assert list(fetch(folder).files) == [CONFIG, SAFE]


@pytest.mark.parametrize(
    ("uri", "name"), [(".", "mine"), ("../mine", "mine"), ("../mine/.", "mine"), ("sub/..", "mine")]
)
def test_a_name_for_paths_that_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, name: str) -> None:
    put(tmp_path / "mine", (CONFIG, BIN, "sub/x"))
    monkeypatch.chdir(tmp_path / "mine")
    assert (fetch(uri).uri, fetch(uri).name) == (uri, name)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mine", (CONFIG, BIN))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/mine").files[BIN] == tmp_path / "mine" / BIN


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mine", (CONFIG, BIN))
    monkeypatch.chdir(tmp_path)
    bundle = fetch("mine")
    monkeypatch.chdir("/")
    assert len(bundle.sha256) == 2


class TestFolders:
    def test_the_only_subfolder_with_an_adapter(self, tmp_path: Path) -> None:
        put(tmp_path / "out", (f"math/{CONFIG}", f"math/{SAFE}", "logs/events", "README.md"))
        bundle = fetch(tmp_path / "out")
        assert (bundle.name, bundle.uri) == ("math", f"{tmp_path}/out/math")
        assert fetch(bundle.uri) == bundle

    def test_several_subfolders_are_listed_with_what_to_type(self, tmp_path: Path) -> None:
        put(tmp_path / "out", tuple(f"{name}/{file}" for name in ("b c", "a") for file in (CONFIG, BIN)))
        code, text = refused(tmp_path / "out")
        assert code == "several-adapters"
        assert "there are 2 adapters in it: a, b c" in text
        assert f"\n    adaptrix convert {tmp_path}/out/a\n    adaptrix convert '{tmp_path}/out/b c'" in text

    def test_many_subfolders_are_counted(self, tmp_path: Path) -> None:
        put(tmp_path / "out", tuple(f"checkpoint-{n}/{file}" for n in range(30) for file in (CONFIG, BIN)))
        _, text = refused(tmp_path / "out")
        assert text.count("adaptrix convert") == 20
        assert "and 10 more" in text

    def test_the_top_comes_first(self, tmp_path: Path) -> None:
        put(tmp_path / "out", (CONFIG, BIN, f"other/{CONFIG}", f"other/{BIN}"))
        assert fetch(tmp_path / "out").name == "out"

    def test_subfolders_are_not_read_where_the_top_will_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(tmp_path / "out", (CONFIG, BIN, "sub/x"))
        monkeypatch.setattr(local, "_below", None)
        assert fetch(tmp_path / "out").name == "out"

    def test_empty(self, tmp_path: Path) -> None:
        code, text = refused(tmp_path)
        assert code == "adapter-missing"
        assert "adapter_config.json with adapter_model.safetensors (or adapter_model.bin), or *.adaptrix.saf" in text

    def test_no_adapter_says_what_is_there(self, tmp_path: Path) -> None:
        code, text = refused(put(tmp_path / "a", ("notes.txt", "sub/data.csv", "new\nline")))
        assert code == "adapter-missing"
        assert "only 'new\\nline', notes.txt, sub/data.csv; expected" in text

    def test_too_many_folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "_MAX_FOLDERS", 2)
        assert refused(put(tmp_path / "a", ("a/x", "b/x", "c/x")))[0] == "several-adapters"


class TestHalfAnAdapter:
    def test_weights_without_config(self, tmp_path: Path) -> None:
        code, text = refused(put(tmp_path / "a", (SAFE,)))
        assert code == "adapter-config-missing"
        assert f"there is {SAFE}, but no {CONFIG}" in text

    def test_config_without_weights(self, tmp_path: Path) -> None:
        code, text = refused(put(tmp_path / "a", (CONFIG, "README.md")))
        assert code == "adapter-weights-missing"
        assert f"there is {CONFIG}, but no {SAFE} or {BIN}" in text

    def test_config_beside_a_models_weights(self, tmp_path: Path) -> None:
        _, text = refused(put(tmp_path / "a", (CONFIG, "model.safetensors")))
        assert "model.safetensors bears the name of a whole model's weights" in text

    def test_weights_that_are_no_file(self, tmp_path: Path) -> None:
        put(tmp_path / "a", (CONFIG,))
        (tmp_path / "a" / SAFE).symlink_to("../gone")
        _, text = refused(tmp_path / "a")
        assert f"({SAFE} is a link to ../gone, which is not there)" in text

    def test_a_config_that_is_far_too_large(self, tmp_path: Path) -> None:
        put(tmp_path / "a", (CONFIG, BIN))
        os.truncate(tmp_path / "a" / CONFIG, 11_000_000)
        code, text = refused(tmp_path / "a")
        assert code == "file-too-large"
        assert "11 MB" in text


class TestFullModels:
    def test_its_tensors_are_counted(self, tmp_path: Path) -> None:
        code, text = refused(put(tmp_path / "llama", full_model(7)))
        size = (tmp_path / "llama" / "model.safetensors").stat().st_size
        assert code == "full-model"
        assert f"this is a full model of 7 tensors ({size} bytes), not an adapter" in text
        assert "use this one as base" in text

    @pytest.mark.parametrize("extension", ["safetensors", "bin"])
    def test_in_parts_with_an_index(self, tmp_path: Path, extension: str) -> None:
        stem = "model" if extension == "safetensors" else "pytorch_model"
        parts = {f"{stem}-0000{n}-of-00002.{extension}": b"" for n in (1, 2)}
        index = json.dumps({"weight_map": {f"t{n}": "x" for n in range(1291)}}).encode()
        folder = put(tmp_path / "a", {"config.json": b"{}", f"{stem}.{extension}.index.json": index, **parts})
        for part in parts:  # sparse: 13.5 GB on no disk
            os.truncate(folder / part, 6_738_400_000)
        assert "a full model of 1,291 tensors (13.5 GB)" in refused(folder)[1]

    def test_in_parts_without_an_index(self, tmp_path: Path) -> None:
        parts = {f"model-0000{n}-of-00002.safetensors": safetensors_bytes(n) for n in (1, 2)}
        assert "of 3 tensors" in refused(put(tmp_path / "a", {"config.json": b"{}", **parts}))[1]

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
    def test_pickles_are_not_opened_to_count(self, tmp_path: Path, name: str) -> None:
        assert "this is a full model (2 bytes), not" in refused(put(tmp_path / "a", (name, "config.json")))[1]

    def test_gguf(self, tmp_path: Path) -> None:
        header = b"GGUF" + (3).to_bytes(4, "little") + (291).to_bytes(8, "little")
        assert "this is a GGUF model of 291 tensors (16 bytes)" in refused(put(tmp_path / "a", {"m.gguf": header}))[1]

    @pytest.mark.parametrize(
        "header", [b"", b"\xff" * 20, b"\2\0\0\0\0\0\0\0[]", b"\4\0\0\0\0\0\0\0[[[[", b"\2\0\0\0\0\0\0\0\xff\xff"]
    )
    def test_a_damaged_header_is_not_counted(self, tmp_path: Path, header: bytes) -> None:
        code, text = refused(put(tmp_path / "a", {"config.json": b"{}", "model.safetensors": header}))
        assert code == "full-model"
        assert "tensors (" not in text

    def test_an_adapter_inside_it_is_taken(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "a", {**full_model(), f"lora/{CONFIG}": b"{}", f"lora/{BIN}": b""})
        assert fetch(folder).name == "lora"

    def test_one_file_of_it(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "a", full_model(3))
        assert "a full model of 3 tensors" in refused(folder / "model.safetensors")[1]


class TestSingleFiles:
    def test_an_injection_file(self, tmp_path: Path) -> None:
        path = (
            put(tmp_path, ("alpaca.adaptrix.safetensors", "other.adaptrix.safetensors")) / "alpaca.adaptrix.safetensors"
        )
        assert fetch(path) == Bundle(str(path), "alpaca", {path.name: path})

    def test_the_only_injection_file_of_a_folder(self, tmp_path: Path) -> None:
        assert fetch(put(tmp_path / "a", ("my.adaptrix.safetensors", "._my.adaptrix.safetensors"))).name == "my"

    def test_several_injection_files(self, tmp_path: Path) -> None:
        code, text = refused(put(tmp_path / "a", ("x.adaptrix.safetensors", "y.adaptrix.safetensors")))
        assert code == "several-adapters"
        assert f"adaptrix convert {tmp_path}/a/x.adaptrix.safetensors\n" in text

    @pytest.mark.parametrize("files", ["x", "xy"])
    def test_an_injection_file_beside_a_checkpoint_is_another_adapter(self, tmp_path: Path, files: str) -> None:
        folder = put(tmp_path / "a", (CONFIG, BIN, SAFE, *(f"{it}.adaptrix.safetensors" for it in files)))
        code, text = refused(folder)
        assert code == "several-adapters"
        typed = [line.split()[-1] for line in text.splitlines() if "adaptrix convert" in line]
        assert sorted(typed) == [f"{folder}/{CONFIG}", *(f"{folder}/{it}.adaptrix.safetensors" for it in files)]
        assert sorted(list(fetch(it).files) for it in typed) == [
            [CONFIG, SAFE],
            *([f"{it}.adaptrix.safetensors"] for it in files),
        ]

    def test_two_adapters_in_a_subfolder_are_two_of_several(self, tmp_path: Path) -> None:
        put(tmp_path / "a", (f"b/{CONFIG}", f"b/{BIN}", "b/x.adaptrix.safetensors", f"c/{CONFIG}", f"c/{BIN}"))
        code, text = refused(tmp_path / "a")
        typed = [line.split()[-1].removeprefix(f"{tmp_path}/a/") for line in text.splitlines()[1:]]
        assert (code, sorted(typed)) == ("several-adapters", [f"b/{CONFIG}", "b/x.adaptrix.safetensors", "c"])
        assert list(fetch(tmp_path / "a" / "c").files) == [CONFIG, BIN]

    def test_a_format_of_a_single_file_takes_none_from_a_checkpoint(self, tmp_path: Path) -> None:
        folder = put(tmp_path / "mine", (CONFIG, SAFE, "optimizer.safetensors"))
        anything = Format("anything", (("*.safetensors",),), INJECTION.detect, INJECTION.read)
        for uri in (folder, folder / SAFE, folder / CONFIG):
            bundle = local.fetch(str(uri), (anything, *FORMATS))
            assert (sorted(bundle.files), bundle.name) == ([CONFIG, SAFE], "mine")
        put(tmp_path / "alone", ("x.adaptrix.safetensors",))
        assert local.fetch(f"{tmp_path}/alone", (anything, *FORMATS)).name == "x"

    @pytest.mark.parametrize("name", [CONFIG, SAFE])
    def test_a_file_of_a_checkpoint_brings_the_other(self, tmp_path: Path, name: str) -> None:
        put(tmp_path / "mine", (CONFIG, SAFE, BIN))
        bundle = fetch(tmp_path / "mine" / name)
        assert (list(bundle.files), bundle.name) == ([CONFIG, SAFE], "mine")

    def test_the_weights_asked_for_are_taken(self, tmp_path: Path) -> None:
        put(tmp_path / "mine", (CONFIG, SAFE, BIN))
        assert list(fetch(tmp_path / "mine" / BIN).files) == [CONFIG, BIN]

    def test_a_file_without_its_other_half(self, tmp_path: Path) -> None:
        put(tmp_path, (SAFE,))
        assert refused(tmp_path / SAFE)[0] == "adapter-config-missing"

    def test_a_file_that_no_format_knows(self, tmp_path: Path) -> None:
        put(tmp_path, ("lora.safetensors",))
        code, text = refused(tmp_path / "lora.safetensors")
        assert code == "format-unknown"
        assert SAFE in text

    def test_a_file_of_another_name_beside_a_config_is_not_looked_for(self, tmp_path: Path) -> None:
        put(tmp_path, {CONFIG: b"{}", "lora.safetensors": safetensors_bytes(2)})
        assert refused(tmp_path / "lora.safetensors")[0] == "format-unknown"

    def test_what_convert_wrote_is_read_under_another_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        offline(monkeypatch)
        alpaca.write(tmp_path / "a", 2, 16, 2)
        for name in ("x", "foo.safetensors"):
            path = adaptrix.convert(tmp_path / "a", tmp_path / name)
            assert adaptrix.check(path).ok
            assert len(adaptrix.load(path).deltas) == 8

    @pytest.mark.parametrize("name", ["x", "foo.safetensors", "model.safetensors", SAFE, "a.bin"])
    def test_an_injection_file_of_any_name(self, tmp_path: Path, name: str) -> None:
        put(tmp_path, {name: b"\x30\0\0\0\0\0\0\0" + b'{"__metadata__":{"adaptrix":"{}"}}'.ljust(48)})
        bundle = fetch(tmp_path / name)
        assert (bundle.files, bundle.name) == ({name: tmp_path / name}, Path(name).stem)
