"""The refusal of work that there is not enough memory for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adaptrix.errors import RefusedError, refuse

#: what the errors of torch, of threads and of imports say, which are of many types
_SAID = (
    *("DefaultCPUAllocator", "out of memory", "can't allocate memory", "std::bad_alloc", "can't start new thread"),
    *("Cannot allocate memory", "failed to map segment"),
)
_TYPES = (RuntimeError, OSError, ImportError)


def memory_refusal(error: BaseException, where: object = "adaptrix") -> RefusedError | None:
    """The refusal for an error that says that memory is used up; None for any other error."""
    said = str(error).strip().partition("\n")[0]
    told = isinstance(error, _TYPES) and any(text in said for text in _SAID)
    if not told and not isinstance(error, MemoryError):
        return None
    found = f"there is not enough memory for this{f': {said}' if said else ''}"
    return refuse("memory", where, found, remedy="Raise the limit, close other programs, or use a larger machine.")


@contextmanager
def enough_memory(where: object) -> Iterator[None]:
    """A block whose want of memory is a :class:`RefusedError` about ``where``."""
    try:
        yield
    except (MemoryError, *_TYPES) as error:
        if refusal := memory_refusal(error, where):
            raise refusal from None
        raise
