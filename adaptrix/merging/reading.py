"""Reads the rows of a stored matrix into one buffer, so that a tensor of any size takes the memory of a piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adaptrix.errors import refuse
from adaptrix.tensor import DTYPES, FileRange
from adaptrix.tensor import Tensor as Stored

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Reader:
    """Rows of a matrix ``[rows, columns]``, ``most`` at a time, in the dtype ``wide``.

    What one reading returned is void at the next.
    """

    def __init__(self, stored: Stored, most: int, wide: torch.dtype) -> None:
        self._stored = stored
        self._width = DTYPES[stored.dtype][0] * stored.shape[1]
        self._raw = torch.empty(most, stored.shape[1], dtype=TORCH[stored.dtype])
        self._wide = torch.empty(most, stored.shape[1], dtype=wide)
        self._bytes = self._raw.view(-1).view(torch.uint8).numpy().data
        path = stored.data.path if isinstance(stored.data, FileRange) else None
        self._file = None if path is None else open(path, "rb", buffering=0)  # noqa: SIM115  # reading() closes it

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` to ``stop``. Raises :class:`RefusedError` for a file that shrank."""
        count = stop - start
        if count == len(self._raw):
            self._fill(self._bytes, start * self._width)
            return self._wide.copy_(self._raw)
        self._fill(self._bytes[: count * self._width], start * self._width)
        return self._wide[:count].copy_(self._raw[:count])

    def _fill(self, view: memoryview, offset: int) -> None:
        if self._file is None:
            assert isinstance(self._stored.data, bytes)
            view[:] = self._stored.data[offset : offset + len(view)]
            return
        assert isinstance(self._stored.data, FileRange)
        self._file.seek(self._stored.data.offset + offset)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                found, remedy = "the file ends within a tensor that it described", "It changed while it was read."
                raise refuse("file-changed", self._stored.data.path, found, remedy=remedy)
            done += count

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


@contextmanager
def reading(stored: Stored, most: int, wide: torch.dtype) -> Iterator[Reader]:
    """A reader of a matrix, closed at the end."""
    reader = Reader(stored, most, wide)
    try:
        yield reader
    finally:
        reader.close()
