"""Who is using which adapter, so that unloading one waits for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Condition

from adaptrix.runtime.selection import Loaded, Selection

_VERSIONS = count(1)


class Users:
    """Counts of users by version, under one lock; versions are never used twice in a process."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._changed = Condition()

    @staticmethod
    def version() -> int:
        """A version that no adapter has had yet."""
        return next(_VERSIONS)

    @contextmanager
    def using(self, selection: Selection) -> Iterator[None]:
        """A user of a selection's adapters while the block runs."""
        versions = [loaded.version for loaded in selection.adapters]
        with self._changed:
            self._counts.update(versions)
        try:
            yield
        finally:
            with self._changed:
                self._counts.subtract(versions)
                self._changed.notify_all()

    def busy(self, loaded: Loaded) -> bool:
        """Whether somebody uses this version."""
        with self._changed:
            return self._counts[loaded.version] > 0

    def drain(self, loaded: Loaded) -> None:
        """Returns when nobody uses this version any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._counts[loaded.version] <= 0)
            del self._counts[loaded.version]
