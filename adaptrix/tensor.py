"""Tensors whose bytes stay in their file until they are read.

Readers yield tensors, the writer copies their bytes; nothing in between needs the numbers, except
the checks and the algebra, which ask for an array. So a file of any size passes through in bounded
memory, and a dtype that numpy does not know passes through untouched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptrix.source_file import SourceFile, gone, source_file

Array = NDArray[Any]

#: safetensors' name of a dtype -> (bytes an element, numpy's or ml_dtypes' name)
DTYPES: dict[str, tuple[int, str]] = {
    "F64": (8, "float64"),
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "I64": (8, "int64"),
    "I32": (4, "int32"),
    "I16": (2, "int16"),
    "I8": (1, "int8"),
    "U64": (8, "uint64"),
    "U32": (4, "uint32"),
    "U16": (2, "uint16"),
    "U8": (1, "uint8"),
    "BOOL": (1, "bool"),
}
#: the dtypes that models are stored and run in
MODEL_FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
FLOATS = (*MODEL_FLOATS, "F8_E4M3", "F8_E5M2")

#: where a number is not finite: the bits to look at, and the least value of these that is none
_BEYOND = {
    "F64": (0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": (0x7FFF_FFFF, 0x7F80_0000),
    "F16": (0x7FFF, 0x7C00),
    "BF16": (0x7FFF, 0x7F80),
    "F8_E4M3": (0x7F, 0x7F),  # it has no Inf
    "F8_E5M2": (0x7F, 0x7C),
}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRange:
    """``nbytes`` bytes of the file ``path``, from ``offset`` on; ``file``: the file where it is open already."""

    path: Path
    offset: int
    nbytes: int
    file: SourceFile | None = field(default=None, compare=False, repr=False)

    @property
    def source(self) -> SourceFile:
        """The open file. Raises :class:`RefusedError` where there is none any more."""
        try:
            return self.file or source_file(self.path)
        except OSError as error:
            raise gone(self.path, error) from None

    def read(self) -> bytes:
        """All of the bytes; a file that was written or removed meanwhile is a refusal, never zeros."""
        with self.source.descriptor() as descriptor:
            data = os.pread(descriptor, self.nbytes, self.offset)
        return data if len(data) == self.nbytes else b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The bytes in pieces of at most 1 MiB; raises as :meth:`read` does."""
        return self.source.chunks(self.offset, self.nbytes)

    def part(self, start: int, nbytes: int) -> FileRange:
        """``nbytes`` of the bytes from ``start`` on."""
        return FileRange(self.path, self.offset + start, nbytes, self.file)

    def joined(self, other: FileRange) -> FileRange | None:
        """The range of both where the other follows in the same file, else None."""
        follows = self.path == other.path and self.file is other.file and self.offset + self.nbytes == other.offset
        return FileRange(self.path, self.offset, self.nbytes + other.nbytes, self.file) if follows else None


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """An array of ``shape`` and ``dtype`` (safetensors' names) in a file or in memory, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: FileRange | bytes

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """A tensor in memory. Raises ``KeyError`` for a dtype that safetensors has no name for."""
        names = {numpy_name: name for name, (_, numpy_name) in DTYPES.items()}
        return cls(names[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype][0]

    def tobytes(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.read()

    def chunks(self) -> Iterator[bytes]:
        """The bytes in pieces, for copying and hashing."""
        return iter((self.data,)) if isinstance(self.data, bytes) else self.data.chunks()

    def numpy(self) -> Array:
        """The array in its own dtype (bf16 and f8 through ml_dtypes), read-only."""
        name = DTYPES[self.dtype][1]
        if self.dtype == "BF16" or self.dtype.startswith("F8"):
            import ml_dtypes

            return np.frombuffer(self.tobytes(), getattr(ml_dtypes, name)).reshape(self.shape)
        return np.frombuffer(self.tobytes(), name).reshape(self.shape)

    def float32(self) -> NDArray[np.float32]:
        """The array as fp32; exact for every float dtype but F64."""
        if self.dtype == "BF16":  # bf16 is the upper half of fp32: no need to import ml_dtypes
            bits = np.frombuffer(self.tobytes(), np.uint16).astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            return self.numpy().astype(np.float32, copy=False)

    def float64(self) -> NDArray[np.float64]:
        """The array as fp64; exact for every float dtype."""
        source = self.numpy() if self.dtype == "F64" else self.float32()
        with np.errstate(invalid="ignore"):  # converting a signalling NaN is no error here: the checks look for NaN
            return source.astype(np.float64)

    def nonfinite(self) -> int:
        """The count of numbers that are NaN or Inf, read a piece at a time: no copy of the whole is made."""
        flat, step = self.reshape(self.size), _CHUNK // DTYPES[self.dtype][0]
        pieces = (flat.rows(start, min(start + step, self.size)) for start in range(0, self.size, step))
        return sum(_nonfinite(piece) for piece in pieces)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` of the first axis: a view, the same bytes."""
        length = self.nbytes // self.shape[0] if self.shape[0] else 0
        first, count = start * length, (stop - start) * length
        part: FileRange | bytes
        if isinstance(self.data, bytes):
            part = self.data[first : first + count]
        else:
            part = self.data.part(first, count)
        return Tensor(self.dtype, (stop - start, *self.shape[1:]), part)

    def reshape(self, *shape: int) -> Tensor:
        """The same bytes under another shape of equal size."""
        if prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return Tensor(self.dtype, shape, self.data)

    def cast(self, dtype: str) -> Tensor:
        """A copy in another dtype, rounded to nearest."""
        if dtype == self.dtype:
            return self
        name = DTYPES[dtype][1]
        if dtype in ("F16", "F32", "F64"):
            return Tensor.of(self.float64().astype(name))
        import ml_dtypes

        return Tensor.of(self.float64().astype(getattr(ml_dtypes, name)))


def _nonfinite(tensor: Tensor) -> int:
    bits = np.frombuffer(tensor.tobytes(), f"u{DTYPES[tensor.dtype][0]}")
    mask, least = (bits.dtype.type(number) for number in _BEYOND[tensor.dtype])
    return int(np.count_nonzero((bits & mask) >= least))
