"""A count of calls that threads share and that costs a hook next to nothing."""

from __future__ import annotations

from itertools import count
from threading import Lock


class Calls:
    """Each call takes the next of the ``numbers``, which is atomic, unlike an addition, and needs no lock.

    Reading the count takes a number as well; these reads are counted, and left out.
    """

    def __init__(self) -> None:
        self.numbers = count()
        self._reads = 0
        self._reading = Lock()

    @property
    def taken(self) -> int:
        """The number of calls so far."""
        with self._reading:
            found = next(self.numbers) - self._reads
            self._reads += 1
            return found
