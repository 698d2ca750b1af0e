"""Readers of the rows of a stored matrix, in the memory of a few rows.

The bytes are read and not mapped: a mapped file that is truncated ends the process at the next access.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from adaptrix.errors import RefusedError, refuse
from adaptrix.source_file import CHANGED
from adaptrix.tensor import FileRange
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import TORCH

#: rows from the first number to the second, in the dtype of the reader; each call overwrites what the last returned
Reader = Callable[[int, int], Tensor]


@contextmanager
def reading(stored: Stored, most: int, wide: torch.dtype) -> Iterator[Reader]:
    """A reader of a matrix ``[rows, columns]``, ``most`` rows at a time, in the dtype ``wide``.

    Its file is open until the end. A call raises :class:`RefusedError` for a file that has changed.
    """
    room = torch.empty(most, stored.shape[1], dtype=wide)
    if isinstance(stored.data, FileRange):
        with _from_file(stored, stored.data, room) as reader:
            yield reader
        return
    raw = torch.frombuffer(bytearray(stored.data), dtype=TORCH[stored.dtype]).view(stored.shape)
    yield lambda start, stop: room[: stop - start].copy_(raw[start:stop])


@contextmanager
def _from_file(stored: Stored, data: FileRange, room: Tensor) -> Iterator[Reader]:
    raw = torch.empty(room.shape, dtype=TORCH[stored.dtype])
    buffer, width = raw.view(-1).view(torch.uint8).numpy().data, raw.itemsize * stored.shape[1]
    file = data.source
    with file.descriptor() as descriptor:

        def read(start: int, stop: int) -> Tensor:
            rows = stop - start
            whole = _fill(buffer[: rows * width], descriptor, data.offset + start * width)
            file.require_same(descriptor)
            if not whole:
                raise shrunk(data)
            return room[:rows].copy_(raw[:rows])

        yield read


def _fill(buffer: memoryview, file: int, offset: int) -> bool:
    """Reads a file's bytes from an offset on into a buffer; False where it ends before."""
    done = 0
    while done < len(buffer):
        read = os.preadv(file, [buffer[done:]], offset + done)
        if not read:
            return False
        done += read
    return True


def shrunk(data: FileRange) -> RefusedError:
    """The refusal of a file that no longer holds what it described."""
    return refuse("file-changed", data.path, "the file ends within a tensor that it described", remedy=CHANGED)
