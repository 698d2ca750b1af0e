"""Progress of long work: the interfaces of a display, and the displays that show nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

#: opens a progress display for a total of bytes; the function that it yields is called with the bytes of each piece
Display = Callable[[int], AbstractContextManager[Callable[[int], object]]]
#: the same for countable things: takes their name and their number
Counted = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def quiet(_total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display at all."""
    return nullcontext(lambda _count: None)


def uncounted(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display of countable things."""
    return nullcontext(lambda _count: None)
