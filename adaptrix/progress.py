"""How long work tells of what it has done, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

#: opens a progress display for so many bytes; what it yields is told of each piece
Display = Callable[[int], AbstractContextManager[Callable[[int], object]]]
#: the same for what is counted in things, and called by a name
Counted = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def quiet(_total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display at all."""
    return nullcontext(lambda _count: None)


def uncounted(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display of things either."""
    return nullcontext(lambda _count: None)
