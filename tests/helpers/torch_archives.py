"""Archives and pickles put together by hand, as torch.save never would."""

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any


def archive(
    pickle: bytes, storages: Mapping[str, bytes] | None = None, records: Mapping[str, bytes] | None = None
) -> bytes:
    """A torch.save archive with this pickle, these storages and further records."""
    everything = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n", **(records or {})}
    everything |= {f"data/{key}": value for key, value in (storages or {}).items()}
    return zipped({f"x/{name}": value for name, value in everything.items()})


def zipped(records: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as file:
        for name, value in records.items():
            file.writestr(name, value)
    return target.getvalue()


def records_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def value(item: Any) -> bytes:
    """The opcodes that push ``item``; ``bytes`` are opcodes already."""
    match item:
        case bytes():
            return item
        case None:
            return b"N"
        case bool():
            return b"\x88" if item else b"\x89"
        case int() if -(1 << 31) <= item < 1 << 31:
            return b"J" + struct.pack("<i", item)
        case int():
            size = item.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + item.to_bytes(size, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
        case tuple():
            return b"(" + b"".join(map(value, item)) + b"t"
        case dict():
            return b"}(" + b"".join(value(part) for pair in item.items() for part in pair) + b"u"
    raise TypeError(item)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: Any) -> bytes:
    return function + value(args) + b"R"


ORDERED = call(name("collections", "OrderedDict"))
V2 = name("torch._utils", "_rebuild_tensor_v2")
V3 = name("torch._utils", "_rebuild_tensor_v3")
FLOAT = name("torch", "FloatStorage")


def storage(key: Any = "0", count: Any = 4, kind: bytes = FLOAT, device: Any = "cpu", tag: Any = "storage") -> bytes:
    return value((tag, kind, key, device, count)) + b"Q"


def tensor(store: bytes | None = None, offset: Any = 0, shape: Any = (4,), stride: Any = (1,), *rest: Any) -> bytes:
    return call(V2, store or storage(), offset, shape, stride, False, ORDERED, *rest)


def program(body: Any) -> bytes:
    return b"\x80\x02" + value(body) + b"."


def one(body: Any, storages: Mapping[str, bytes] | None = None) -> bytes:
    """An archive of one tensor, ``w``, over a storage of 16 bytes."""
    return archive(program({"w": body}), {"0": bytes(range(16))} if storages is None else storages)
