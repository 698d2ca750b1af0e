"""The offsets of the records in a torch.save archive, read from an untrusted zip.

torch reads stored (uncompressed) records straight from the file, and so do we; all that is needed of
the zip format is its directory. The standard library's ``zipfile`` was measured: 4 to 20 ms to import,
and it neither bounds the directory before reading it, nor says where data begins, nor detects overlaps,
prefixes and contradictions between the two descriptions of a record. Anything that torch.save never writes
is refused. The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptrix.errors import RefusedError, refuse
from adaptrix.formats.untrusted import GOOD_NAME, bad_name, read_exactly, shown
from adaptrix.source_file import SourceFile

MAX_RECORDS = 500_000
_AGAIN = "Download it again."
_END = struct.Struct("<4s4H2LH")  # signature, 2 disks, 2 counts, size and offset of the directory, comment
_LOCATOR = struct.Struct("<4sLQL")  # signature, disk, offset of the zip64 end, disks
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, length, 2 versions, 2 disks, 2 counts, size, offset
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_TAIL = _END64.size + _LOCATOR.size + _END.size
_ENCRYPTED = 0x2041  # flag bits: encrypted, strongly so, directory masked
_FOLDER = 0x10  # in the attributes
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Record:
    """A stored record: its bytes are ``nbytes`` of the archive from ``offset`` on."""

    name: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record in the directory; ``header``: the offset of its local header."""

    name: bytes
    header: int
    nbytes: int


def records(file: SourceFile, size: int, path: Path) -> dict[str, Record]:
    """Every record by name, in the order of the directory. Raises :class:`RefusedError`."""
    count, start, length = _end(file, size, path)
    if count > MAX_RECORDS:
        raise refuse("zip-bomb", path, f"the archive claims {count} records", f"at most {MAX_RECORDS}")
    entries = list(_entries(read_exactly(file, start, length, path), count, path))
    found = _located(file, entries, start, path)
    return {entry.name.decode(): found[entry.header] for entry in entries}


def _end(file: SourceFile, size: int, path: Path) -> tuple[int, int, int]:
    """Count, offset and length of the directory, which must end exactly where its end record begins."""
    tail = read_exactly(file, max(0, size - _TAIL), min(size, _TAIL), path)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
        found = "the zip archive has no end: the file is cut off, or something was added to it"
        raise refuse("file-truncated", path, found, remedy=_AGAIN)
    _, disk, disk_start, here, count, length, start, comment = _END.unpack(tail[-_END.size :])
    stop = size - _END.size
    if (disk, disk_start, comment) != (0, 0, 0) or here != count:
        raise _corrupt(path, "the end of the zip archive is not as torch.save writes it")
    if len(tail) == _TAIL and tail[_END64.size :][:4] == b"PK\6\7":
        short, stop = (count, length, start), size - _TAIL
        count, length, start = _end64(tail, stop, path)
        full = zip(short, (count, length, start), (_FULL16, _FULL32, _FULL32), strict=True)
        if any(value not in (wide, limit) for value, wide, limit in full):
            raise _corrupt(path, "the zip archive has two ends that contradict each other")
    if start + length != stop:
        raise _corrupt(path, "the zip directory is not where its end says")
    return count, start, length


def _end64(tail: bytes, stop: int, path: Path) -> tuple[int, int, int]:
    """Count, length and offset of the directory from the zip64 end record, which torch always writes."""
    _, disk, offset, disks = _LOCATOR.unpack_from(tail, _END64.size)
    magic, _, _, _, here_disk, start_disk, here, count, length, start = _END64.unpack_from(tail)
    if magic != b"PK\6\6" or offset != stop or disks > 1 or disk or here_disk or start_disk or here != count:
        raise _corrupt(path, "the zip64 end of the archive is not as torch.save writes it")
    return count, length, start


def _entries(directory: bytes, count: int, path: Path) -> Iterator[_Entry]:
    """The directory's entries; names are unique even where case does not count, as torch looks them up."""
    position, seen = 0, set()
    for _ in range(count):
        if len(directory) - position < _ENTRY.size:
            raise _corrupt(path, "the zip directory ends early")
        fields = _ENTRY.unpack_from(directory, position)
        begin = position + _ENTRY.size
        name_length, extra_length, comment_length = fields[10:13]
        name = directory[begin : begin + name_length]
        extra = directory[begin + name_length : begin + name_length + extra_length]
        position = begin + name_length + extra_length + comment_length
        text = _checked_name(name, path).casefold()
        if text in seen:
            raise _corrupt(path, f"the zip archive has two records named {shown(text)}")
        seen.add(text)
        yield _entry(fields, name, extra, path)
    if position != len(directory):
        raise _corrupt(path, "the zip directory does not have the length it claims")


def _checked_name(name: bytes, path: Path) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise _corrupt(path, f"a record's name is not UTF-8: {name[:60]!r}") from None
    if fault := bad_name(text):
        raise refuse("tensor-name", f"{path}, record {shown(text)}", fault, GOOD_NAME)
    return text


def _entry(fields: tuple[Any, ...], name: bytes, extra: bytes, path: Path) -> _Entry:
    """One entry; a compressed or encrypted record is refused: its tensors could not be read in place."""
    signature, _, _, flags, method, _, _, _, packed, nbytes, *_, attributes, offset = fields
    where = f"{path}, record {shown(name.decode())}"
    if signature != b"PK\1\2" or fields[13] != 0:
        raise _corrupt(path, "the zip directory is not as torch.save writes it")
    if flags & _ENCRYPTED:
        raise refuse("file-unsupported", where, "the record is encrypted", remedy="Save it again with torch.save.")
    if method != 0:
        raise refuse("file-unsupported", where, "the record is compressed", remedy="Unzip it and zip it with `zip -0`.")
    nbytes, packed, offset = _wide([nbytes, packed, offset], extra, path)
    if packed != nbytes:
        raise _corrupt(path, f"record {shown(name.decode())} has two sizes")
    if nbytes and (attributes & _FOLDER or name.endswith(b"/")):  # torch would hand out memory it never wrote
        raise _corrupt(path, f"record {shown(name.decode())} is a folder with bytes of its own")
    return _Entry(name, offset, nbytes)


def _wide(values: list[int], extra: bytes, path: Path) -> list[int]:
    """The values, those that do not fit 32 bits taken from the zip64 extra field (id 1), in order."""
    if _FULL32 not in values:
        return values
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        if kind == 1 and len(field) >= 8 * values.count(_FULL32):
            wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            return [next(wide) if value == _FULL32 else value for value in values]
        position += 4 + length
    raise _corrupt(path, "a record of 4 GB or more has no size")


def _located(file: SourceFile, entries: list[_Entry], limit: int, path: Path) -> dict[int, Record]:
    """The records by local header, each checked to lie between its neighbours."""
    found, position = {}, 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header < position or entry.header + _LOCAL.size > limit:
            raise refuse(
                "zip-bomb", path, f"record {shown(entry.name.decode())} overlaps another one", "records apart", _AGAIN
            )
        local = read_exactly(file, entry.header, _LOCAL.size + len(entry.name), path)
        magic, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack_from(local)
        if (magic, method, name_length) != (b"PK\3\4", 0, len(entry.name)) or flags & _ENCRYPTED:
            raise _corrupt(path, f"record {shown(entry.name.decode())} is described in two ways")
        if local[_LOCAL.size :] != entry.name:
            raise _corrupt(path, f"record {shown(entry.name.decode())} has two names")
        start = entry.header + _LOCAL.size + name_length + extra_length
        position = start + entry.nbytes
        if position > limit:
            raise refuse(
                "file-truncated", path, f"record {shown(entry.name.decode())} goes beyond the end", remedy=_AGAIN
            )
        found[entry.header] = Record(entry.name.decode(), start, entry.nbytes)
    return found


def _corrupt(path: Path, found: str) -> RefusedError:
    return refuse("torch-file-invalid", path, found, remedy=_AGAIN)
