"""safetensors files: read with every value checked, written as the reference writes them.

The file: 8 bytes little-endian header length n, n bytes of JSON, the data. The JSON maps each tensor's
name to ``{"dtype", "shape", "data_offsets": [begin, end]}`` (offsets into the data, row-major), and
``__metadata__`` to strings. The data is covered exactly once, without holes or overlaps.
The format's own documentation describes it. The header is parsed here because the reference's errors name
no tensor, stop at the first problem and have no remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

from adaptrix.errors import Problem, RefusedError, refuse
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

MAX_HEADER = 100_000_000  # bytes, the format's own limit
_MAX_MARKS = 2_000_000  # of `{`, `[` and `,`: some 250,000 tensors; bounds what JSON may allocate
_AGAIN = "Download it again."
_KEYS = {"dtype", "shape", "data_offsets"}
#: the reference's order of dtypes: tensors are laid out by it, the last first, then by name
_ORDER = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16"),
    *("BF16", "I32", "U32", "F32", "F64", "I64", "U64"),
)
_RANK = {dtype: -rank for rank, dtype in enumerate(_ORDER)}

Entry = tuple[int, int, str, dict[str, Any]]  # begin, end, name, info


class _BadNumber(str):
    """A JSON number that no header may hold (negative, fractional, huge), kept as its text."""

    __repr__ = str.__str__


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, lazy and in the order of their bytes, and the metadata.

    Raises :class:`RefusedError` with every problem of every tensor.
    """
    with opened(path) as (file, size):
        text = _header(file, size, path)
    start = 8 + len(text)
    header = _parse(text, path)
    metadata = header.pop("__metadata__", {})
    refuse_if_any(chain(_metadata_faults(metadata, path), _faults(header, path)), path)
    entries = sorted((*info["data_offsets"], name, info) for name, info in header.items())
    refuse_if_any(_layout_faults(entries, size - start, path), path)
    return {name: _tensor(info, file, start + begin, end - begin) for begin, end, name, info in entries}, metadata


def has_metadata(path: Path, key: str) -> bool:
    """True for a safetensors file whose metadata has ``key``; only its header is read."""
    try:
        with opened(path) as (file, size):
            text = _header(file, size, path)
        metadata = _parse(text, path).get("__metadata__") if f'"{key}"'.encode() in text else None
    except RefusedError:
        return False
    return isinstance(metadata, dict) and key in metadata


def _tensor(info: dict[str, Any], file: SourceFile, offset: int, nbytes: int) -> Tensor:
    return Tensor(info["dtype"], tuple(info["shape"]), FileRange(file.path, offset, nbytes, file))


def _header(file: SourceFile, size: int, path: Path) -> bytes:
    """The bytes of the JSON, its length checked against the file's."""
    head = read_exactly(file, 0, min(size, 64), path)
    length = int.from_bytes(head[:8], "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8) or head[8:9] != b"{":
        raise other_format(head, path) or _no_header(head, size, length, path)
    text = read_exactly(file, 8, length, path)
    if sum(map(text.count, (b"{", b"[", b","))) > _MAX_MARKS:
        raise refuse("file-too-large", path, "the header describes millions of things", remedy=_AGAIN)
    return text


def _no_header(head: bytes, size: int, length: int, path: Path) -> Exception:
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return refuse("file-format", path, "this is a pickle, not safetensors", remedy="Rename it to end in .bin.")
    if size >= 9 and head[8:9] == b"{" and size - 8 < length <= MAX_HEADER:
        found = f"the file ends after {size} bytes, within its own header of {length}"
        return refuse("file-truncated", path, found, remedy=_AGAIN)
    if size >= 9 and head[8:9] == b"{" and length > MAX_HEADER:
        found = f"the header claims {length} bytes"
        return refuse("file-too-large", path, found, f"at most {MAX_HEADER}", _AGAIN)
    return refuse("file-format", path, f"this is not a safetensors file: it begins with {head[:16]!r}", remedy=_AGAIN)


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    """The header's object; a key that is given twice is refused, since readers differ on which one counts."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return result

    decoder = json.JSONDecoder(
        object_pairs_hook=unique, parse_int=_integer, parse_float=_BadNumber, parse_constant=_BadNumber
    )
    try:
        header = decoder.decode(text.decode("utf-8"))
    except RecursionError:
        raise refuse(
            "safetensors-invalid", path, "the header is nested thousands deep", "a table of tensors", _AGAIN
        ) from None
    except ValueError as error:
        raise refuse("safetensors-invalid", path, f"the header is not JSON: {error}", remedy=_AGAIN) from None
    found = (f"the header says {shown(key)} twice" for key in twice)
    refuse_if_any((Problem("safetensors-invalid", str(path), text, "each name once", _AGAIN) for text in found), path)
    if not isinstance(header, dict):
        raise refuse("safetensors-invalid", path, "the header is not a JSON object", "a table of tensors", _AGAIN)
    return header


def _integer(text: str) -> int | _BadNumber:
    return _BadNumber(text) if text[0] == "-" or len(text) > 20 else int(text)


def _metadata_faults(metadata: object, path: Path) -> Iterator[Problem]:
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        yield Problem(
            "safetensors-invalid", str(path), "__metadata__ holds other things", "an object of strings", _AGAIN
        )
    elif any(_surrogates(text) for pair in metadata.items() for text in pair):
        yield Problem("safetensors-invalid", str(path), "__metadata__ holds half a Unicode character", "text", _AGAIN)


def _surrogates(text: str) -> bool:
    """True where the text holds a lone surrogate: JSON can escape one, UTF-8 cannot encode it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _faults(header: dict[str, Any], path: Path) -> Iterator[Problem]:
    """A problem for each tensor whose entry is wrong in itself."""
    for name, info in header.items():
        if (fault := _fault(name, info)) is not None:
            code, found, expected = fault
            yield Problem(code, tensor_at(path, name), found, expected)


def _fault(name: str, info: Any) -> tuple[str, str, str] | None:
    """(code, found, expected) for the first thing wrong with a tensor."""
    if found := bad_name(name):
        return "tensor-name", found, GOOD_NAME
    if type(info) is not dict or info.keys() != _KEYS:
        return "safetensors-invalid", f"described by {shown(info)}", "dtype, shape and data_offsets"
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        return "dtype", f"the dtype is {shown(dtype)}", f"one of {', '.join(DTYPES)}"
    if type(shape) is not list or not is_shape(shape):
        return "safetensors-invalid", f"the shape is {shown(shape)}", "a list of sizes"
    if type(offsets) is not list or len(offsets) != 2 or not is_shape(offsets):
        return "safetensors-invalid", f"data_offsets is {shown(offsets)}", "[begin, end]"
    nbytes = prod(shape) * DTYPES[dtype][0]
    if offsets[1] - offsets[0] != nbytes:
        return "safetensors-invalid", f"{offsets[1] - offsets[0]} bytes for {dtype} {shape}", f"{nbytes}"
    return None


def _layout_faults(entries: list[Entry], length: int, path: Path) -> Iterator[Problem]:
    """The problems of the tensors together: they must cover the data once, end to end."""
    position = 0
    for begin, end, name, _ in entries:
        if begin != position:
            found = f"its bytes begin at {begin}, the ones before it end at {position}"
            expected = "one tensor right after another"
            yield Problem("safetensors-invalid", tensor_at(path, name), found, expected, _AGAIN)
        position = max(position, end)
    if position > length:
        lost = sum(end > length for _, end, _, _ in entries)
        found = f"the file ends {position - length} bytes early; {lost} of {len(entries)} tensors are cut off"
        yield Problem("file-truncated", str(path), found, remedy=_AGAIN)
    elif position < length:
        found = f"{length - position} bytes after the last tensor belong to none"
        yield Problem("safetensors-invalid", str(path), found, "no byte that the header does not describe", _AGAIN)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new file, ``path``, the same bytes for the same input.

    Memory stays flat: bytes are copied piece by piece. Raises :class:`RefusedError` for a tensor that no
    reader would accept or a source that shrank, ``OSError`` as the system does (``FileExistsError``
    where ``path`` exists already).
    """
    ordered = sorted(tensors.items(), key=lambda item: (_RANK.get(item[1].dtype, 0), item[0]))
    refuse_if_any(_write_faults(ordered, path), path)
    with open(path, "xb") as file:
        file.write(encode(ordered, metadata))
        for piece in _merged(tensor.data for _, tensor in ordered):
            file.writelines((piece,) if isinstance(piece, bytes) else piece.chunks())


def _write_faults(ordered: list[tuple[str, Tensor]], path: Path) -> Iterator[Problem]:
    for name, tensor in ordered:
        nbytes = len(tensor.data) if isinstance(tensor.data, bytes) else tensor.data.nbytes
        info = {"dtype": tensor.dtype, "shape": [*tensor.shape], "data_offsets": [0, nbytes]}
        if (fault := _fault(name, info)) is not None or name == "__metadata__":
            code, found, expected = fault or ("tensor-name", "the format keeps this name for itself", "")
            yield Problem(code, tensor_at(path, name), found, expected)


def encode(ordered: Sequence[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    """The length and the header, padded with spaces so that the data is aligned to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _merged(pieces: Iterator[FileRange | bytes] | Any) -> Iterator[FileRange | bytes]:
    """The same bytes with neighbours in one file joined, so that a file is opened once a run."""
    run: FileRange | None = None
    for piece in pieces:
        if isinstance(piece, FileRange) and run and (longer := run.joined(piece)):
            run = longer
            continue
        if run:
            yield run
        run = piece if isinstance(piece, FileRange) else None
        if isinstance(piece, bytes):
            yield piece
    if run:
        yield run
