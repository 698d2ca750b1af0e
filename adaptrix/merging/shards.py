"""The writer of a shard: unchanged tensors are copied by the system, changed ones are computed.

The header gives the position of each tensor, so several threads write at once, each into its own range.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

import torch

from adaptrix.formats.safetensors_file import encode
from adaptrix.merging.product import pieces
from adaptrix.merging.reading import shrunk
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.tensor import FileRange, Tensor

#: bytes that a thread copies before it checks for an interruption
_RUN = 1 << 24
#: where the system cannot copy: another kind of disk, or an old kernel
_NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
#: called with the number of bytes that have just been written
Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A tensor of the output: its name, the stored tensor, the dtype to write, and the change, if any."""

    name: str
    stored: Tensor
    dtype: str
    change: TensorChange | None = None
    allow_nonfinite: bool = False

    @property
    def result(self) -> Tensor:
        """The tensor that the header describes, without bytes."""
        shape = (self.change.instead or self.stored).shape if self.change else self.stored.shape
        return Tensor(self.dtype, shape, b"")


class _Job(Protocol):
    """A part of the file that writes itself; ``check`` raises where the work was interrupted."""

    def __call__(self, out: int, check: Callable[[], None], progress: Progress) -> None: ...


def write_shard(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str], progress: Progress) -> None:
    """Writes a new file, ``path``, with the entries in their order.

    Raises :class:`RefusedError` for a source that shrank or a number that leaves its dtype, ``OSError`` as the
    system does.
    """
    listed = list(entries)
    head = encode([(entry.name, entry.result) for entry in listed], metadata)
    with open(path, "xb", buffering=0) as file:
        file.write(head)
        total = len(head) + sum(entry.result.nbytes for entry in listed)
        file.truncate(total)
        _run(_jobs(listed, len(head)), file.fileno(), progress)


def _jobs(entries: list[Entry], position: int) -> Iterator[_Job]:
    """The jobs of a file: the changed tensors one by one, adjacent unchanged ones together."""
    run: FileRange | None = None
    begin = position
    for entry in entries:
        source = None if entry.change else entry.stored.data
        if run is not None and isinstance(source, FileRange) and (longer := run.joined(source)):
            run = longer
        else:
            yield from _copies(run, begin)
            run, begin = (source, position) if isinstance(source, FileRange) else (None, position)
            if run is None:
                yield _Computed(entry, position)
        position += entry.result.nbytes
    yield from _copies(run, begin)


def _copies(run: FileRange | None, position: int) -> Iterator[_Job]:
    if run is not None:
        yield _Copied(run, position)


@dataclass(frozen=True, slots=True, eq=False)
class _Computed:
    entry: Entry
    position: int

    def __call__(self, out: int, check: Callable[[], None], progress: Progress) -> None:
        position, entry = self.position, self.entry
        change, allowed = entry.change or TensorChange(), entry.allow_nonfinite
        for piece in pieces(entry.stored, change, entry.dtype, entry.name, allow_nonfinite=allowed):
            check()
            _put(out, piece, position)
            position += len(piece)
            progress(len(piece))


@dataclass(frozen=True, slots=True)
class _Copied:
    source: FileRange
    position: int

    def __call__(self, out: int, check: Callable[[], None], progress: Progress) -> None:
        file = self.source.source
        with file.descriptor() as descriptor:
            done = 0
            while done < self.source.nbytes:
                check()
                offset, count = self.source.offset + done, min(_RUN, self.source.nbytes - done)
                copied = _copy(descriptor, out, count, offset, self.position + done)
                file.require_same(descriptor)
                if not copied:
                    raise shrunk(self.source)
                done += copied
                progress(copied)


def _copy(source: int, out: int, count: int, offset: int, position: int) -> int:
    """Copies bytes in the kernel where possible, which is faster and shares the blocks on disks that support it."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, out, count, offset, position)
        except OSError as error:
            if error.errno not in _NO_COPY:
                raise
    piece = os.pread(source, count, offset)
    _put(out, memoryview(piece), position)
    return len(piece)


def _put(out: int, piece: memoryview, position: int) -> None:
    while piece:
        written = os.pwrite(out, piece, position)
        piece, position = piece[written:], position + written


class _StoppedError(Exception):
    """Another thread failed, or the user has interrupted."""


def _run(jobs: Iterable[_Job], out: int, progress: Progress) -> None:
    """Does the jobs, as many at once as there are cores. Raises what the first of them raises."""
    stop = Event()

    def check() -> None:
        if stop.is_set():
            raise _StoppedError

    with _single_threaded(), ThreadPoolExecutor(_cores()) as pool:
        futures = [pool.submit(job, out, check, progress) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Limits torch to one thread a product: there is one product a core already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
