"""GGUF files: metadata and tensors, read with every size bounded and written as llama.cpp reads them.

The file: ``GGUF``, a version, the numbers of tensors and of metadata entries; the entries (key, type, value); for each
tensor its name, dimensions (the fastest first: the reverse of a shape), type and offset; then the data, aligned. All
little-endian. The format's own documentation describes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

from adaptrix.errors import Problem, refuse
from adaptrix.formats.untrusted import (
    GOOD_NAME,
    bad_name,
    is_shape,
    opened,
    other_format,
    read_exactly,
    refuse_if_any,
    shown,
    tensor_at,
)
from adaptrix.source_file import SourceFile
from adaptrix.tensor import DTYPES, FileRange, Tensor

MAGIC = b"GGUF"
#: the type of a tensor -> its dtype; others are quantised, and no adapter is stored so
TYPES = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
#: the dtypes that are written: llama.cpp loads F64 and does not compute with it
_CODES = {dtype: code for code, dtype in TYPES.items() if dtype != "F64"}
_VERSION = 3
_ALIGNMENT = 32
_MAX_HEADER = 64_000_000  # bytes
_MAX_TENSORS, _MAX_ENTRIES, _MAX_ITEMS = 200_000, 10_000, 1_000_000
_AGAIN = "Download it again."
#: the type of a value -> struct's format; 8 is a string and 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Value = str | int | float | bool | list[int] | list[float] | list[str]
Kind = Literal["string", "float32", "uint32", "uint32s"]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Value]]:
    """The tensors, lazy, and the metadata. Raises :class:`RefusedError` with every problem of every tensor."""
    with opened(path) as (file, size):
        header = _Header(_start(file, size, path), path)
        tensors, entries = header.counts()
        metadata = header.metadata(entries)
        described = [header.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise refuse("gguf-invalid", path, f"general.alignment is {shown(alignment)}", "a power of two", _AGAIN)
    start = -(-header.position // alignment) * alignment
    refuse_if_any(_faults(described, start, size, path), path)
    return {name: _tensor(file, start + at, shape, code) for name, shape, code, at in described}, metadata


def _start(file: SourceFile, size: int, path: Path) -> bytes:
    head = read_exactly(file, 0, min(size, 64), path)
    if head[:4] != MAGIC:
        refusal = other_format(head, path)
        raise refusal or refuse("file-format", path, f"this is no GGUF file: it begins with {head[:16]!r}")
    return read_exactly(file, 0, min(size, _MAX_HEADER), path)


def _tensor(file: SourceFile, offset: int, shape: tuple[int, ...], code: int) -> Tensor:
    dtype = TYPES[code]
    return Tensor(dtype, shape, FileRange(file.path, offset, prod(shape) * DTYPES[dtype][0], file))


Described = tuple[str, tuple[int, ...], int, int]


def _faults(described: Sequence[Described], start: int, size: int, path: Path) -> Iterator[Problem]:
    seen: set[str] = set()
    for name, shape, code, offset in described:
        if (found := _fault(name, shape, code)) is not None:
            yield Problem("gguf-invalid", tensor_at(path, name), *found)
        elif name in seen:
            yield Problem("gguf-invalid", tensor_at(path, name), "the name is there twice", "each name once", _AGAIN)
        elif start + offset + prod(shape) * DTYPES[TYPES[code]][0] > size:
            yield Problem("file-truncated", tensor_at(path, name), "its bytes end after the file", remedy=_AGAIN)
        seen.add(name)


def _fault(name: str, shape: tuple[int, ...], code: int) -> tuple[str, str] | None:
    if found := bad_name(name):
        return found, GOOD_NAME
    if code not in TYPES:
        return f"its type is {code}, a quantised one", f"one of {', '.join(TYPES.values())}, as adapters have"
    return None if is_shape(shape) else (f"the shape is {shown(shape)}", "sizes of a tensor")


class _Header:
    """A cursor over the start of a file, which refuses to read past its end."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data, self._path, self.position = data, path, 4

    def counts(self) -> tuple[int, int]:
        """The numbers of tensors and of metadata entries."""
        version = self._number("I")
        if version not in (2, 3):
            big = version == int.from_bytes(_VERSION.to_bytes(4, "big"), "little")
            found = "the file is big-endian" if big else f"the file has version {version}"
            raise refuse("gguf-invalid", self._path, found, "GGUF of version 2 or 3, little-endian", "Write it again.")
        tensors, entries = self._number("Q"), self._number("Q")
        if tensors > _MAX_TENSORS or entries > _MAX_ENTRIES:
            found = f"the header claims {tensors} tensors and {entries} entries"
            raise refuse("file-too-large", self._path, found, f"at most {_MAX_TENSORS} and {_MAX_ENTRIES}", _AGAIN)
        return tensors, entries

    def metadata(self, count: int) -> dict[str, Value]:
        """The entries by key."""
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            if key in found:
                raise refuse("gguf-invalid", self._path, f"the metadata has {shown(key)} twice", "each once", _AGAIN)
            found[key] = self._value(self._number("I"))
        return found

    def tensor(self) -> Described:
        """Name, shape, type and offset of the next tensor."""
        name, dims = self._string(), self._number("I")
        if dims > 8:
            raise refuse("gguf-invalid", tensor_at(self._path, name), f"{dims} dimensions", "at most 4", _AGAIN)
        sizes = [self._number("Q") for _ in range(dims)]
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._format(kind))
        inner, count = self._number("I"), self._number("Q")
        if count > _MAX_ITEMS:
            raise refuse("file-too-large", self._path, f"an array of {count} items", f"at most {_MAX_ITEMS}", _AGAIN)
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        letter = self._format(inner)
        return [*struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter)))]

    def _format(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise refuse("gguf-invalid", self._path, f"a value of type {kind}", "a type of GGUF's", _AGAIN)
        return _SCALARS[kind]

    def _string(self) -> str:
        data = self._take(self._number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise refuse("gguf-invalid", self._path, f"{data[:40]!r} is no text", "UTF-8", _AGAIN) from None

    def _number(self, letter: str) -> int:
        size = struct.calcsize(f"<{letter}")
        return struct.unpack(f"<{letter}", self._take(size))[0]  # type: ignore[no-any-return]

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise refuse("file-truncated", self._path, "the file ends within its header", remedy=_AGAIN)
        data, self.position = self._data[self.position : end], end
        return data


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, tuple[Kind, Value]]) -> None:
    """Writes a new file, the same bytes for the same input.

    ``metadata``: key -> type and value. Raises :class:`RefusedError` for a dtype that GGUF has no type for, ``OSError``
    as the system does.
    """
    strange = [(name, tensor) for name, tensor in tensors.items() if tensor.dtype not in _CODES]
    remedy = "Convert with --dtype float32."
    refuse_if_any((Problem("dtype", n, t.dtype, f"one of {', '.join(_CODES)}", remedy) for n, t in strange), path)
    head = MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))
    head += b"".join(_text(key) + _packed(*entry) for key, entry in metadata.items())
    offset = 0
    for name, tensor in tensors.items():
        sizes = struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        head += _text(name) + struct.pack("<I", len(tensor.shape)) + sizes
        head += struct.pack("<IQ", _CODES[tensor.dtype], offset)
        offset += tensor.nbytes + _padding(tensor.nbytes)
    with open(path, "xb") as file:
        file.write(head + bytes(_padding(len(head))))
        for tensor in tensors.values():
            file.writelines(tensor.chunks())
            file.write(bytes(_padding(tensor.nbytes)))


def _padding(length: int) -> int:
    return -length % _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _packed(kind: Kind, value: Value) -> bytes:
    if kind == "string":
        return struct.pack("<I", _STRING) + _text(str(value))
    if kind == "float32":
        return struct.pack("<If", 6, value)
    if kind == "uint32":
        return struct.pack("<II", 4, value)
    assert isinstance(value, list)
    return struct.pack(f"<IIQ{len(value)}I", _ARRAY, 4, len(value), *value)
