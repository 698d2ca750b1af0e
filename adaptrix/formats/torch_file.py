"""torch.save files (``.bin``, ``.pt``, ``.pth``) read without torch and without running their pickle.

The file is a zip archive of stored records: ``<root>/data.pkl`` describes the tensors, ``<root>/data/<key>``
holds the bytes of each storage. A tensor that is contiguous in its storage stays in the file until it is
read; any other is copied into row-major order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from adaptrix.errors import Problem, refuse
from adaptrix.formats import pickle_machine
from adaptrix.formats.pickle_values import View
from adaptrix.formats.untrusted import (
    GOOD_NAME,
    bad_name,
    is_shape,
    opened,
    other_format,
    read_exactly,
    refuse_if_any,
    shown,
    tensor_at,
)
from adaptrix.formats.zip_directory import Record, records
from adaptrix.source_file import SourceFile
from adaptrix.tensor import DTYPES, FileRange, Tensor

MAX_PICKLE = 64 << 20  # bytes
_MAX_CLAIM = 4  # times the file's size: tied weights are stored once and named twice
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6
_AGAIN = "Download it again."
_RESAVE = "Load it with torch.load(weights_only=True) and save it with safetensors.torch.save_file."


@dataclass(frozen=True, slots=True)
class _Archive:
    """The records of a file by their names below its root."""

    path: Path
    file: SourceFile
    records: Mapping[str, Record]

    def storage(self, view: View) -> Record | None:
        return self.records.get(f"data/{view.storage.key}")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, in its order; a dict under a single "state_dict" counts as one.

    Raises :class:`RefusedError` for any other content, with every problem of every tensor.
    """
    with opened(path) as (file, size):
        archive = _archive(file, size, path)
        views = _views(pickle_machine.run(_pickle(file, archive), path, 200_000 + 100 * len(archive.records)), path)
        refuse_if_any(_faults(views, archive), path)
        copies = dict(_copied(file, views, archive))
    return {name: copies.get(name) or _in_place(view, archive) for name, view in views.items()}


def _archive(file: SourceFile, size: int, path: Path) -> _Archive:
    head = read_exactly(file, 0, min(size, 64), path)
    if not head.startswith(b"PK\3\4"):
        raise other_format(head, path) or _no_archive(head, path)
    found = records(file, size, path)
    root = next(iter(found), "").partition("/")[0] + "/"
    archive = _Archive(path, file, {name.removeprefix(root): found[name] for name in found if name.startswith(root)})
    if "constants.pkl" in archive.records:
        raise refuse("file-unsupported", path, "this is a TorchScript program, not weights", remedy=_RESAVE)
    if "data.pkl" not in archive.records:
        raise refuse(
            "file-format", path, f"this zip archive is not torch's: it holds {_few(found)}", "data.pkl in a folder"
        )
    order = archive.records.get("byteorder")
    if order and read_exactly(file, order.offset, min(order.nbytes, 16), path) != b"little":
        raise refuse("file-unsupported", path, "it was saved on a big-endian machine", "little-endian numbers", _RESAVE)
    return archive


def _no_archive(head: bytes, path: Path) -> Exception:
    if _LEGACY in head:
        return refuse(
            "file-unsupported", path, "torch before 1.6 wrote this file, in a format of its own", remedy=_RESAVE
        )
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        found = "this is a bare pickle, not a file of torch.save; loading it would run whatever it says"
        return refuse("file-unsupported", path, found, remedy="Ask its author for safetensors.")
    if head[8:9] == b"{":
        return refuse("file-format", path, "this looks like safetensors", remedy="Rename it to end in .safetensors.")
    return refuse("file-format", path, f"this is not a torch file: it begins with {head[:16]!r}", remedy=_AGAIN)


def _few(names: Mapping[str, object]) -> str:
    """Up to five of the names."""
    listed = ", ".join(shown(name) for name in list(names)[:5]) or "nothing"
    return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pickle(file: SourceFile, archive: _Archive) -> bytes:
    record = archive.records["data.pkl"]
    if record.nbytes > MAX_PICKLE:
        raise refuse("zip-bomb", archive.path, f"its pickle has {record.nbytes} bytes", f"at most {MAX_PICKLE}")
    return read_exactly(file, record.offset, record.nbytes, archive.path)


def _views(value: object, path: Path) -> dict[str, View]:
    """The state dict in the pickle's content; anything else in it is refused by name, not dropped."""
    if type(value) is dict and value.keys() == {"state_dict"}:
        value = value["state_dict"]
    if type(value) is not dict:
        raise refuse("file-unsupported", path, f"it holds a {_kind(value)}", "a dict of tensors", _RESAVE)
    others = {
        f"{key} ({_kind(item)})": item for key, item in value.items() if type(key) is not str or type(item) is not View
    }
    if others:
        found = f"beside {len(value) - len(others)} tensors it holds {_few(others)}"
        raise refuse("file-unsupported", path, found, "a dict of tensors", "Save the state dict alone.")
    return value


def _kind(value: object) -> str:
    return "tensor" if type(value) is View else type(value).__name__


def _faults(views: Mapping[str, View], archive: _Archive) -> Iterator[Problem]:
    """The problems of each tensor, and of all together."""
    claimed = 0
    for name, view in views.items():
        if (fault := _fault(name, view, archive)) is not None:
            code, found, expected, remedy = fault
            yield Problem(code, tensor_at(archive.path, name), found, expected, remedy)
        else:
            claimed += prod(view.shape) * DTYPES[view.dtype][0]
    if claimed > _MAX_CLAIM * archive.file.size:
        found = f"its tensors claim {claimed} bytes, the file has {archive.file.size}"
        yield Problem("zip-bomb", str(archive.path), found, "every byte used once or twice")


def _fault(name: str, view: View, archive: _Archive) -> tuple[str, str, str, str] | None:
    """(code, found, expected, remedy) for the first thing wrong with a tensor."""
    if found := bad_name(name):
        return "tensor-name", found, GOOD_NAME, ""
    if view.dtype not in DTYPES or view.storage.type.dtype not in DTYPES:
        return "dtype", f"the dtype is torch.{view.dtype}", f"one of {', '.join(DTYPES)}", ""
    if not is_shape(view.shape) or not is_shape(view.stride) or len(view.shape) != len(view.stride) or view.offset < 0:
        return (
            "torch-file-invalid",
            f"shape {shown(view.shape)}, stride {shown(view.stride)}, offset {view.offset}",
            "sizes",
            "",
        )
    record, nbytes = archive.storage(view), view.storage.count * DTYPES[view.storage.type.dtype][0]
    if record is None or record.nbytes != nbytes:
        held = f"has {record.nbytes}" if record else "is not there"
        return "file-truncated", f"its storage {held}", f"data/{view.storage.key} of {nbytes} bytes", _AGAIN
    return _span_fault(view, nbytes // DTYPES[view.dtype][0])


def _span_fault(view: View, room: int) -> tuple[str, str, str, str] | None:
    """The fault of a tensor that leaves its storage of ``room`` elements or uses elements twice; else None."""
    size = prod(view.shape)
    last = view.offset + sum((count - 1) * step for count, step in zip(view.shape, view.stride, strict=True))
    if size and last >= room:
        return "torch-file-invalid", f"it reaches element {last} of its storage", f"fewer than {room}", ""
    if size > room:
        remedy = "Save it again after .contiguous()."
        return (
            "file-unsupported",
            f"it makes {size} elements of the {room} in its storage",
            "a tensor of its own",
            remedy,
        )
    return None


def _is_contiguous(view: View) -> bool:
    """True where the elements lie row by row without gaps; the stride of an axis of size 1 does not matter."""
    expected = 1
    for count, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if count != 1 and step != expected:
            return False
        expected *= count
    return True


def _in_place(view: View, archive: _Archive) -> Tensor:
    """A contiguous tensor, left in the file."""
    record, width = archive.storage(view), DTYPES[view.dtype][0]
    nbytes = prod(view.shape) * width
    if record is None or not nbytes:
        return Tensor(view.dtype, view.shape, b"")
    offset = record.offset + view.offset * width
    return Tensor(view.dtype, view.shape, FileRange(archive.path, offset, nbytes, archive.file))


def _copied(file: SourceFile, views: Mapping[str, View], archive: _Archive) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are not contiguous, copied; each storage is read once for all of its views."""
    groups: dict[str, dict[str, View]] = defaultdict(dict)
    for name, view in views.items():
        if prod(view.shape) and not _is_contiguous(view):
            groups[view.storage.key][name] = view
    for key, group in groups.items():
        record = archive.records[f"data/{key}"]
        storage = read_exactly(file, record.offset, record.nbytes, archive.path)
        for name, view in group.items():
            yield name, _strided(view, storage)


def _strided(view: View, storage: bytes) -> Tensor:
    """The elements of a view in row-major order. numpy checks once more that they lie in the storage."""
    width = DTYPES[view.dtype][0]
    strides = tuple(step * width for step in view.stride)
    array = np.ndarray(view.shape, f"V{width}", storage, view.offset * width, strides)
    return Tensor(view.dtype, view.shape, array.tobytes())
