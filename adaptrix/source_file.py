"""Files that are read: one descriptor from the first byte to the last, and a refusal if the file changes meanwhile.

What is checked, hashed and copied has to be the same bytes. A file that is replaced by another of its name stays
readable through its descriptor. One that is written in place gets another size or time of modification, which is
compared after every read: bytes that may be new are never used.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from weakref import WeakSet, WeakValueDictionary

from adaptrix.errors import RefusedError, refuse

#: files that stay open between reads; of more, the one that was not read for longest is closed and opened again later
MOST_OPEN = 32
CHANGED = "Fetch or copy it again while nothing writes to it."
_CHUNK = 1 << 20
#: nanoseconds: two changes that are nearer may have one time of modification
_TICK = 20_000_000


@dataclass(frozen=True, slots=True)
class _State:
    """The marks by which a file is known to be the same as before."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> _State:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class SourceFile:
    """A regular file, open for reading. Raises ``OSError`` as the system does where it cannot be opened.

    - ``path``: where it was when it was opened; another may be there now.
    - ``size``: in bytes; 0 for what is no regular file, see ``regular``.
    """

    __slots__ = ("__weakref__", "_descriptor", "_readers", "_state", "_touched", "_used", "path", "regular", "settled")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._readers, self._used = 0, next(_CLOCK)
        self._descriptor = _opened(path)
        status = os.fstat(self._descriptor)
        self.regular = stat.S_ISREG(status.st_mode)
        self._state, self._touched = _State.of(status), status.st_ctime_ns
        self.settled = time.time_ns() - status.st_mtime_ns > _TICK
        _OPEN.add(self)
        _close_some(self)

    @property
    def size(self) -> int:
        return self._state.size if self.regular else 0

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """The descriptor, for ``os.pread``. Raises :class:`RefusedError` at the end if the file has changed."""
        descriptor = self._taken()
        try:
            yield descriptor
            self.require_same(descriptor)
        finally:
            with _LOCK:
                self._readers -= 1

    def require_same(self, descriptor: int) -> None:
        """Raises :class:`RefusedError` if the file has been written since it was opened."""
        now = _State.of(os.fstat(descriptor))
        if now != self._state:
            held, found = self._state.size, "the file changed while it was read"
            found += f": it had {held} bytes and has {now.size}" if now.size != held else ""
            raise refuse("file-changed", self.path, found, remedy=CHANGED)

    def chunks(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Bytes in pieces of at most 1 MiB. Raises :class:`RefusedError` if the file has changed or ends before."""
        with self.descriptor() as descriptor:
            position, end = offset, offset + nbytes
            while position < end:
                piece = os.pread(descriptor, min(_CHUNK, end - position), position)
                self.require_same(descriptor)
                if not piece:
                    found = f"the file ends {end - position} bytes short of a tensor it described"
                    raise refuse("file-changed", self.path, found, remedy=CHANGED)
                yield piece
                position += len(piece)

    def sha256(self) -> str:
        """The digest of all bytes."""
        import hashlib  # imported here: listing commands does not need it

        digest, buffer = hashlib.sha256(), memoryview(bytearray(min(4 * _CHUNK, max(1, self.size))))
        with self.descriptor() as descriptor:
            position = 0
            while read := os.preadv(descriptor, [buffer], position):
                digest.update(buffer[:read])
                position += read
        return digest.hexdigest()

    def first_sha256(self) -> str:
        """The digest of all bytes as they were when the file was opened.

        Raises :class:`RefusedError` where that is not sure, as the file's times were set by hand meanwhile.
        """
        digest = self.sha256()
        if self._is_touched() and self.is_at(self.path):  # a file that was renamed or removed counts as touched
            raise self._changed()
        return digest

    def require_digest(self, digest: str) -> None:
        """Raises :class:`RefusedError` if the bytes are no longer those of the digest of the first.

        They are hashed again only where the times of the file do not settle it: it was written in the moment before it
        was opened, or its time of modification was set by hand.
        """
        if (self._is_touched() or not self.settled) and self.sha256() != digest:
            raise self._changed()

    def _is_touched(self) -> bool:
        with self.descriptor() as descriptor:
            return os.fstat(descriptor).st_ctime_ns != self._touched

    def _changed(self) -> RefusedError:
        return refuse("file-changed", self.path, "the file changed while it was read", remedy=CHANGED)

    def is_at(self, path: Path) -> bool:
        """True where this very file, unchanged, is at a path."""
        try:
            return _State.of(os.stat(path)) == self._state
        except (OSError, ValueError):
            return False

    def is_untouched_at(self, path: Path) -> bool:
        """True where this very file is at a path and its status is the same too: no new mode, link or times."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return False
        return _State.of(status) == self._state and status.st_ctime_ns == self._touched

    def _taken(self) -> int:
        with _LOCK:
            if self._descriptor is None:
                self._descriptor = self._again()
                _OPEN.add(self)
                _close_some(self)
            self._readers += 1
            self._used = next(_CLOCK)
            return self._descriptor

    def _again(self) -> int:
        """The file, opened again. Raises :class:`RefusedError` where it is not the same any more."""
        try:
            descriptor = _opened(self.path)
        except OSError as error:
            raise gone(self.path, error) from None
        try:
            self.require_same(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def close(self) -> None:
        """Gives the descriptor back; the next read opens the file again."""
        with _LOCK:
            descriptor, self._descriptor = self._descriptor, None
            _OPEN.discard(self)
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            with suppress(OSError, TypeError):  # os is taken apart at the end of the process
                os.close(self._descriptor)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[type[SourceFile], tuple[Path]]:
        return SourceFile, (self.path,)

    @property
    def idle(self) -> bool:
        return not self._readers

    @property
    def used(self) -> int:
        """The time of the last read, counted in reads."""
        return self._used


@contextmanager
def holding(files: Mapping[str, SourceFile]) -> Iterator[None]:
    """A block in which :func:`source_file` returns these files for their paths, whatever is there by now."""
    token = _HELD.set({**_HELD.get(), **files})
    try:
        yield
    finally:
        _HELD.reset(token)


def source_file(path: Path) -> SourceFile:
    """The file at a path: the one that is held in this context, one that is open already, or newly opened.

    Raises ``OSError`` as the system does.
    """
    held = _HELD.get().get(os.fspath(path))
    return current_file(path) if held is None else held


def current_file(path: Path) -> SourceFile:
    """The file that is at a path now. Raises ``OSError`` as the system does."""
    with _LOCK:
        found = _FILES.get(os.fspath(path))
        if found is None or not found.is_untouched_at(path):
            found = _FILES[os.fspath(path)] = SourceFile(path)
        return found


def gone(path: Path, error: OSError) -> RefusedError:
    """The refusal of a file that could be opened before."""
    found = f"the file cannot be opened any more ({error.strerror or error})"
    return refuse("file-changed", path, found, remedy=CHANGED)


def _opened(path: Path) -> int:
    """A descriptor, opened without waiting: a named pipe would block for ever."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not _close_idle():
            raise
        return os.open(path, flags)


def _close_some(but: SourceFile) -> None:
    with _LOCK:
        idle = sorted((one for one in _OPEN if one.idle and one is not but), key=lambda one: one.used)
        for one in idle[: max(0, len(_OPEN) - MOST_OPEN)]:
            one.close()


def _close_idle() -> bool:
    with _LOCK:
        idle = [one for one in _OPEN if one.idle]
        for one in idle:
            one.close()
        return bool(idle)


_LOCK = RLock()
_CLOCK = count()
_OPEN: WeakSet[SourceFile] = WeakSet()
_FILES: WeakValueDictionary[str, SourceFile] = WeakValueDictionary()
_HELD: ContextVar[Mapping[str, SourceFile]] = ContextVar("adaptrix_held", default=MappingProxyType({}))
