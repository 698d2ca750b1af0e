"""Zips that contradict themselves, overlap, hide or swell."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from adaptrix.errors import RefusedError
from adaptrix.formats import torch_file
from tests.helpers.torch_archives import (
    one,
    program,
    tensor,
    zipped,
)
from tests.helpers.torch_files import code, saved

GOOD = one(tensor())

# zips put together by hand

END = struct.Struct("<4s4H2LH")


def directory_at(content: bytes) -> int:
    position: int = END.unpack(content[-22:])[6]
    return position


def patched(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def with_end(**changes: int) -> bytes:
    names = ("magic", "disk", "start_disk", "here", "count", "length", "start", "comment")
    fields = dict(zip(names, END.unpack(GOOD[-22:]), strict=True)) | changes
    return GOOD[:-22] + END.pack(*fields.values())


def deflated() -> bytes:
    return zipped({"x/data.pkl": program({}), "x/data/0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)


ZIPS = {
    "no end": (GOOD[:-22], "file-truncated"),
    "half of it": (GOOD[: len(GOOD) // 2], "file-truncated"),
    "something added": (GOOD + b"\0", "file-truncated"),
    "a comment": (with_end(comment=3) + b"abc", "file-truncated"),
    "a comment that is not there": (with_end(comment=3), "torch-file-invalid"),
    "many disks": (with_end(disk=1), "torch-file-invalid"),
    "count of 65534": (with_end(count=65534, here=65534), "torch-file-invalid"),
    "one record more": (with_end(count=5, here=5), "torch-file-invalid"),
    "one record fewer": (with_end(count=3, here=3), "torch-file-invalid"),
    "directory elsewhere": (with_end(start=0), "torch-file-invalid"),
    "directory beyond the file": (with_end(start=1 << 31), "torch-file-invalid"),
    "directory without length": (with_end(length=0), "torch-file-invalid"),
    "encrypted": (patched(GOOD, directory_at(GOOD) + 8, b"\1\0"), "file-unsupported"),
    "compressed": (deflated(), "file-unsupported"),
    "two sizes": (patched(GOOD, directory_at(GOOD) + 24, b"\xff\xff\0\0"), "torch-file-invalid"),
    "beyond the end": (patched(GOOD, directory_at(GOOD) + 20, b"\xff\xff\0\0" * 2), "file-truncated"),
    "4 GB without a size": (patched(GOOD, directory_at(GOOD) + 20, b"\xff" * 8), "torch-file-invalid"),
    "record elsewhere": (patched(GOOD, directory_at(GOOD) + 42, b"\1"), "torch-file-invalid"),
    "record beyond the end": (patched(GOOD, directory_at(GOOD) + 42, b"\xfe\xff\xff\xff"), "zip-bomb"),
    "another name inside": (patched(GOOD, 30, b"y"), "torch-file-invalid"),
    "compressed inside only": (patched(GOOD, 8, b"\x08"), "torch-file-invalid"),
    # found by fuzzing: torch.load hands out uninitialised memory for it
    "a folder with bytes": (patched(GOOD, directory_at(GOOD) + 38, b"\x10"), "torch-file-invalid"),
    "a path out": (zipped({"../data.pkl": b"", "x/../../a": b""}), "tensor-name"),
    "a path from the root": (zipped({"/etc/passwd": b""}), "tensor-name"),
    "a name that hides": (zipped({"x/data\u202e.pkl": b""}), "tensor-name"),
    "two of a name": (
        patched(zipped({"x/data/A": b"", "x/data/B": b""}), 0, b"PK\3\4").replace(b"B", b"a"),
        "torch-file-invalid",
    ),
}


@pytest.mark.parametrize("case", ZIPS)
def test_refuses_a_hostile_zip(tmp_path: Path, case: str) -> None:
    content, expected = ZIPS[case]
    assert code(tmp_path, content) == expected


def test_refuses_overlapping_records(tmp_path: Path) -> None:
    start = directory_at(GOOD)
    second = GOOD.index(b"PK\1\2", start + 4)
    assert code(tmp_path, patched(GOOD, second + 42, GOOD[start + 42 : start + 46])) == "zip-bomb"


def test_refuses_two_ends_that_contradict(tmp_path: Path) -> None:
    content = saved({"w": torch.ones(2)})
    assert content[-42:-38] == b"PK\6\7"
    assert code(tmp_path, patched(content, len(content) - 22 + 10, b"\1\0")) == "torch-file-invalid"
    assert code(tmp_path, patched(content, len(content) - 98, b"XX")) == "torch-file-invalid"


def test_refuses_absurd_counts_of_records_before_reading_them(tmp_path: Path) -> None:
    content = saved({"w": torch.ones(2)})
    counts = struct.pack("<2Q", 1 << 40, 1 << 40)
    content = patched(patched(content, len(content) - 98 + 24, counts), len(content) - 22 + 8, b"\xff" * 4)
    assert code(tmp_path, content) == "zip-bomb"


def test_refuses_a_pickle_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as file, file.open("x/data.pkl", "w") as record:
        for _ in range(65):
            record.write(bytes(1 << 20))
    with pytest.raises(RefusedError, match="its pickle has"):
        torch_file.read(path)


def test_reads_sizes_beyond_4_gb_from_the_zip64_fields() -> None:
    from adaptrix.formats.zip_directory import _wide

    full, path = 0xFFFFFFFF, Path("x")
    extra = struct.pack("<2H4s", 7, 4, b"else") + struct.pack("<2H2Q", 1, 16, 5 << 30, 6 << 30)
    assert _wide([full, 9, full], extra, path) == [5 << 30, 9, 6 << 30]
    for bad in (b"", extra[:8], struct.pack("<2HQ", 1, 8, 5)):
        with pytest.raises(RefusedError):
            _wide([full, 9, full], bad, path)
