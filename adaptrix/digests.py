"""SHA-256 of the files that are read, computed beside the reading from the same open files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread

from adaptrix.errors import RefusedError, refuse
from adaptrix.source_file import SourceFile, current_file, holding


class Digests(Mapping[str, str]):
    """Digests by file name, computed in a thread; the first access waits for them."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files, self._found = files, dict[str, str | RefusedError]()
        self._thread = Thread(target=self._compute, daemon=True)
        self._lock = Lock()
        self._opened: dict[str, SourceFile | OSError] = {}

    def hold(self) -> None:
        """Opens the files; one that cannot be opened is left to its reader, or to who asks for its digest."""
        with self._lock:
            for name, path in self._files.items():
                if name not in self._opened:
                    self._opened[name] = _opened(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block whose readers find the files that are open, and no others that have taken their names."""
        self.hold()
        files = ((self._files[name], file) for name, file in self._opened.items())
        with holding({os.fspath(path): file for path, file in files if isinstance(file, SourceFile)}):
            yield

    def begin(self) -> None:
        """Starts the thread; calling it again does nothing."""
        self.hold()
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def require_unchanged(self) -> None:
        """Raises :class:`RefusedError` for a file whose bytes are no longer those that its digest was made from.

        Without a digest there is nothing to compare: every read has compared the state of its file.
        """
        if self._thread.ident is None:
            return
        for name, file in self._opened.items():
            if isinstance(file, SourceFile):
                file.require_digest(self[name])

    def _compute(self) -> None:
        for name, file in self._opened.items():
            self._found[name] = _digest(file, self._files[name])

    def __getitem__(self, name: str) -> str:
        if name not in self._files:
            raise KeyError(name)
        self.begin()
        self._thread.join()
        found = self._found[name]
        if isinstance(found, RefusedError):
            raise found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _opened(path: Path) -> SourceFile | OSError:
    try:
        return current_file(path)
    except OSError as error:
        return error


def _digest(file: SourceFile | OSError, path: Path) -> str | RefusedError:
    if isinstance(file, OSError):
        return refuse("file-unreadable", path, f"it cannot be read: {file.strerror or file}")
    try:
        return file.first_sha256()
    except RefusedError as error:  # raised when the digest is read
        return error
    except OSError as error:
        return refuse("file-unreadable", path, f"it cannot be read: {error.strerror or error}")
