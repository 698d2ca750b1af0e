"""Readers of the rows of a stored matrix through a mapping of its file, in the memory of a few rows."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adaptrix.errors import RefusedError, refuse
from adaptrix.tensor import FileRange
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import TORCH


class Reader:
    """Rows of a matrix ``[rows, columns]``, ``most`` at a time, in the dtype ``wide``.

    Each call overwrites the rows that the last one returned.
    """

    def __init__(self, stored: Stored, raw: Tensor, most: int, wide: torch.dtype, file: int | None) -> None:
        self._stored, self._raw, self._file = stored, raw, file
        self._wide = torch.empty(most, stored.shape[1], dtype=wide)

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` to ``stop``. Raises :class:`RefusedError` for a file that shrank."""
        if self._file is not None:
            _require_whole(self._stored, self._file)
        wide = self._wide if stop - start == len(self._wide) else self._wide[: stop - start]
        return wide.copy_(self._raw[start:stop])


@contextmanager
def reading(stored: Stored, most: int, wide: torch.dtype) -> Iterator[Reader]:
    """A reader of a matrix; its file is open and mapped until the end."""
    if not isinstance(stored.data, FileRange):
        raw = torch.frombuffer(bytearray(stored.data), dtype=TORCH[stored.dtype])
        yield Reader(stored, raw.view(stored.shape), most, wide, None)
        return
    with open(stored.data.path, "rb", buffering=0) as file:
        _require_whole(stored, file.fileno())
        skip = stored.data.offset % mmap.ALLOCATIONGRANULARITY
        begin, length = stored.data.offset - skip, stored.data.nbytes + skip
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)  # nothing is written to it
        raw = torch.frombuffer(mapped, dtype=TORCH[stored.dtype], count=stored.size, offset=skip)
        yield Reader(stored, raw.view(stored.shape), most, wide, file.fileno())


def _require_whole(stored: Stored, file: int) -> None:
    """Raises :class:`RefusedError` for a file that ends within the tensor: reading there would end the process."""
    assert isinstance(stored.data, FileRange)
    if os.fstat(file).st_size < stored.data.offset + stored.data.nbytes:
        raise shrunk(stored.data)


def shrunk(data: FileRange) -> RefusedError:
    """The refusal of a file that no longer holds what it described."""
    found, remedy = "the file ends within a tensor that it described", "It changed while it was read."
    return refuse("file-changed", data.path, found, remedy=remedy)
