"""Helpers of the readers of downloaded files: opening, recognising other formats, naming tensors.

A file from elsewhere may be anything: a pointer, a web page, half a download, an attack. Whatever it
is, the reader's answer is either a true result or a :class:`RefusedError` that says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import prod
from pathlib import Path
from reprlib import Repr

from adaptrix.errors import AdaptrixError, Problem, RefusedError, refuse
from adaptrix.source_file import SourceFile, source_file

MAX_NAME = 1024  # characters of a tensor's name
GOOD_NAME = "printable characters that are no file path"
MAX_DIM = (1 << 63) - 1
MAX_DIMS = 64  # numpy and torch know no more
_MAX_PROBLEMS = 100
_PIECE = 1 << 30  # no system reads more than 2 GiB at once
_AGAIN = "Download it again."
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 100

#: the first bytes of other formats, with code, description and remedy
_OTHER_FORMATS: tuple[tuple[bytes, str, str, str], ...] = (
    (
        b"version https://git-lfs",
        "lfs-pointer",
        "this is a Git LFS pointer, not the file itself",
        "Run `git lfs pull` in its repository, or download the file again.",
    ),
    (
        b"<",
        "file-format",
        "this is a web page or XML, not a checkpoint",
        "Download the file itself, not the page about it.",
    ),
    (
        b"PK\x03\x04",
        "file-format",
        "this is a zip archive, as torch.save writes",
        "If it is one, rename it to end in .bin.",
    ),
    (b"GGUF", "file-format", "this is a GGUF file", "Rename it to end in .gguf."),
    (b"\x1f\x8b", "file-format", "this is gzip-compressed", "Decompress it first."),
    (b"\x89HDF", "file-format", "this is an HDF5 file", "Save it as safetensors with the library that wrote it."),
)


@contextmanager
def opened(path: Path) -> Iterator[tuple[SourceFile, int]]:
    """The file and its size in bytes. Raises :class:`RefusedError` for every error of the system."""
    try:
        file = source_file(path)
        if not file.regular:
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise refuse("file-unreadable", path, f"this is {kind}", "a file")
        if not file.size:
            raise refuse("file-truncated", path, "the file is empty", remedy=_AGAIN)
        yield file, file.size
    except FileNotFoundError:
        raise refuse("file-missing", path, "there is no such file", "a file") from None
    except PermissionError:
        raise refuse("permission-denied", path, "the file may not be read", remedy="Change its permissions.") from None
    except OSError as error:
        raise refuse("file-unreadable", path, f"the file cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        if isinstance(error, AdaptrixError) or "\0" not in str(path):
            raise
        raise refuse("file-missing", ascii(str(path)), "this is no file name") from None


def read_exactly(file: SourceFile, offset: int, count: int, path: Path) -> bytes:
    """``count`` bytes from ``offset`` on; fewer are a refusal."""
    data = b""
    with file.descriptor() as descriptor:
        while len(data) < count:
            piece = os.pread(descriptor, min(count - len(data), _PIECE), offset + len(data))
            if not piece:
                raise refuse("file-truncated", path, f"the file ends {count - len(data)} bytes short", remedy=_AGAIN)
            data += piece
    return data


def other_format(head: bytes, path: Path) -> RefusedError | None:
    """A refusal that names the format of a file, where its first bytes show it; else None."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, code, found, remedy in _OTHER_FORMATS:
        if start.startswith(magic):
            return refuse(code, path, found, remedy=remedy)
    return None


def shown(value: object) -> str:
    """A value from the file as one short line of ASCII, however long or deep it is."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


def tensor_at(path: Path, name: str) -> str:
    """The ``where`` of a problem with a tensor."""
    return f"{path}, tensor {shown(name)}"


def bad_name(name: str) -> str | None:
    """The fault of a tensor's name, or None; names are used in messages, manifests and other programs' paths."""
    if not name or len(name) > MAX_NAME:
        return f"the name has {len(name)} characters"
    if not name.isprintable():
        return "the name holds control or invisible characters"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "the name looks like a file path"
    return None


def is_shape(value: object) -> bool:
    """True for a list or tuple of at most 64 sizes, each of 0 … 2⁶³-1 (a bool is no size).

    An empty shape must stay countable too: [0, 2⁶², 2⁶²] has no elements and no array either.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MAX_DIMS:
        return False
    for size in value:  # called for every tensor: a generator would cost twice as much
        if type(size) is not int or not 0 <= size <= MAX_DIM:
            return False
    return 0 not in value or prod(filter(None, value)) <= MAX_DIM >> 3


def refuse_if_any(problems: Iterable[Problem], path: Path) -> None:
    """Raise :class:`RefusedError` with the problems; after a hundred, one says that there are more.

    The rest are not even looked for: a hostile file may have a million.
    """
    found = list(islice(problems, _MAX_PROBLEMS + 1))
    if len(found) > _MAX_PROBLEMS:
        found[_MAX_PROBLEMS] = Problem("more-problems", str(path), "there are more problems like these")
    if found:
        raise RefusedError(found)
