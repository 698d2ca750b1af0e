"""Reads the rows of a stored matrix into one buffer, so that a tensor of any size takes the memory of a piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adaptrix.errors import refuse
from adaptrix.tensor import DTYPES, FileRange
from adaptrix.tensor import Tensor as Stored


class Reader:
    """Rows of a matrix ``[rows, columns]``; what one reading returned is void at the next."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._width = DTYPES[stored.dtype][0] * stored.shape[1]
        self._room = bytearray()
        path = stored.data.path if isinstance(stored.data, FileRange) else None
        self._file = None if path is None else open(path, "rb", buffering=0)  # noqa: SIM115  # reading() closes it

    def __call__(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows from ``start`` to ``stop`` as torch's. Raises :class:`RefusedError` for a file that shrank."""
        size = (stop - start) * self._width
        if len(self._room) < size:
            self._room = bytearray(size)
        view = memoryview(self._room)[:size]
        if self._file is None:
            assert isinstance(self._stored.data, bytes)
            view[:] = self._stored.data[start * self._width : stop * self._width]
        else:
            self._fill(view, start * self._width)
        return torch.frombuffer(view, dtype=dtype).view(stop - start, -1)

    def _fill(self, view: memoryview, offset: int) -> None:
        assert self._file is not None
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
def reading(stored: Stored) -> Iterator[Reader]:
    """A reader of a matrix, closed at the end."""
    reader = Reader(stored)
    try:
        yield reader
    finally:
        reader.close()
