"""A pickle interpreter that can build descriptions of tensors and nothing else.

A pickle is a program; Python's own interpreter of it runs whatever function the file names. This one
imports nothing: a name is looked up as text in a table of the few that ``torch.save`` writes for a
state dict (1.6 to 2.13), and any other is refused by name. Only the opcodes that appear there are
known. Work, memory and nesting are bounded by the number of opcodes, values are never hashed, compared
or printed in depth. The opcodes: Lib/pickletools.py of CPython documents them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptrix.errors import refuse
from adaptrix.formats.pickle_values import GLOBALS, UNSUPPORTED, Call, MalformedError, Storage, Type, require
from adaptrix.formats.untrusted import MAX_DIM, shown

MAX_OPCODES = 4_000_000  # ~100,000 tensors; bounds time (~2 s) and memory (~100 bytes an opcode)
_MAX_MARKS = 256
_MAX_TEXT = 1 << 16
_DAMAGED = "Download it again, or ask its author for safetensors."
_UNTRUSTED = "Do not load it with anything that runs pickles; ask its author for safetensors."


_DANGEROUS = {0x69: "INST", 0x6F: "OBJ", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4"}


def run(data: bytes, path: Path, limit: int = MAX_OPCODES) -> object:
    """The content of a pickle: views of tensors in dicts, lists and tuples, beside plain values.

    At most ``limit`` opcodes are run. Raises :class:`RefusedError`.
    """
    machine = _Machine(data, path)
    try:
        return machine.run(min(limit, MAX_OPCODES))
    except (MalformedError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        what = f": {error}" if isinstance(error, MalformedError) else ""
        found = f"the pickle is not what torch.save writes for tensors, at byte {machine.position}{what}"
        raise refuse(
            "torch-file-invalid", path, found, remedy="Download it again, or ask its author for safetensors."
        ) from None


class _Machine:
    """The state of a run: a stack (one list a mark), a memo, a position in the program.

    Popping an empty list, reading an unset memo and running off the end are the pickle's faults, and end
    as ``IndexError``, ``KeyError`` and ``MalformedError``.
    """

    __slots__ = ("data", "memo", "outer", "path", "position", "stack", "storages")

    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, limit: int) -> object:
        data, table = self.data, _OPCODES
        require(data[:1] == b"\x80", "no protocol")
        for _ in range(limit):
            opcode = data[self.position]
            self.position += 1
            if opcode == 0x2E:  # STOP
                return self._result()
            (table.get(opcode) or self._unknown(opcode))(self)
        raise refuse(
            "zip-bomb",
            self.path,
            f"the pickle takes more than {limit} steps, which no number of its tensors needs",
            remedy=_UNTRUSTED,
        )

    def _result(self) -> object:
        require(len(self.stack) == 1 and not self.outer and self.position == len(self.data), "leftovers at its end")
        return self.stack[0]

    def _unknown(self, opcode: int) -> Callable[[_Machine], None]:
        if opcode in _DANGEROUS:
            found = f"the pickle uses {_DANGEROUS[opcode]}, which makes objects of any class and so runs code"
            raise refuse("pickle-code", self.path, found, remedy=_UNTRUSTED)
        raise MalformedError(f"the opcode 0x{opcode:02x}, which torch.save does not write")

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            raise MalformedError("it ends early")
        self.position += count
        return piece

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 512)
        require(end >= 0, "a name without end")
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def text(self, size: int) -> None:
        count = self.number(size)
        require(count <= _MAX_TEXT, f"a text of {count} bytes")
        self.stack.append(self.take(count).decode("utf-8"))

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def top(self, kind: type) -> Any:
        require(type(self.stack[-1]) is kind, f"something added to what is no {kind.__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def find(self, module: str, name: str) -> None:
        """Push the table's entry of a name; any other name is refused."""
        full = f"{module}.{name}"
        if full in UNSUPPORTED:
            remedy = "Save it again as plain tensors, with safetensors.torch.save_file."
            raise refuse("file-unsupported", self.path, f"it holds {UNSUPPORTED[full]}", "plain tensors", remedy)
        if full not in GLOBALS:
            found = f"it would run {shown(full)[1:-1]}: loading this file the usual way runs code"
            raise refuse("pickle-code", self.path, found, "tensors and nothing else", _UNTRUSTED)
        self.stack.append(GLOBALS[full])


def _protocol(machine: _Machine) -> None:
    require(machine.position == 1 and machine.number(1) in (2, 3, 4, 5), "its protocol")


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    require(type(name) is str and type(module) is str, "a name that is no text")
    machine.find(module, name)


def _reduce(machine: _Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    require(type(function) is Call and type(args) is tuple, "a call of what cannot be called")
    machine.stack.append(function.run(args))


def _build(machine: _Machine) -> None:
    """Attributes of an OrderedDict: a state dict's ``_metadata``, module versions that no adapter needs."""
    state = machine.stack.pop()
    machine.top(dict)
    require(type(state) is dict, "attributes that are no dict")


def _persistent(machine: _Machine) -> None:
    """("storage", class, key, device, count)"""
    pid = machine.stack.pop()
    require(type(pid) is tuple and len(pid) == 5 and pid[0] == "storage", "a reference that is no storage")
    _, kind, key, device, count = pid
    require(type(kind) is Type and kind.storage and type(device) is str, "a storage's class or device")
    require(type(key) is str and key.isascii() and key.isalnum() and len(key) <= 64, "a storage's key")
    require(type(count) is int and 0 <= count <= MAX_DIM, "a storage's size")
    storage = machine.storages.setdefault(key, Storage(kind, key, count))
    require(storage.type is kind and storage.count == count, "a storage described in two ways")
    machine.stack.append(storage)


def _mark(machine: _Machine) -> None:
    require(len(machine.outer) < _MAX_MARKS, "too deep nesting")
    machine.outer.append(machine.stack)
    machine.stack = []


def _set(target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    for key, value in zip(keys, values, strict=True):
        require(type(key) is str or type(key) is int, "a key that is no text")
        require(key not in target, f"the name {shown(key)} twice")
        target[key] = value


def _set_items(machine: _Machine) -> None:
    items = machine.since_mark()
    require(len(items) % 2 == 0, "a key without value")
    _set(machine.top(dict), items[::2], items[1::2])


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set(machine.top(dict), [key], [value])


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.top(list).extend(items)


def _tuple(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append(tuple(items))


def _short_tuple(machine: _Machine, count: int) -> None:
    require(len(machine.stack) >= count, "a tuple of nothing")
    items = tuple(machine.stack[-count:])
    machine.stack[-count:] = [items]


def _long(machine: _Machine) -> None:
    count = machine.number(1)
    require(count <= 9, f"a number of {count} bytes")
    machine.stack.append(machine.number(count, signed=True))


def _real(machine: _Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


_OPCODES: dict[int, Callable[[_Machine], Any]] = {
    0x80: _protocol,
    0x95: lambda machine: machine.take(8),  # FRAME: a hint for streams
    ord("c"): lambda machine: machine.find(machine.line(), machine.line()),
    0x93: _stack_global,
    ord("R"): _reduce,
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("("): _mark,
    ord("t"): _tuple,
    ord(")"): lambda machine: machine.stack.append(()),
    0x85: lambda machine: _short_tuple(machine, 1),
    0x86: lambda machine: _short_tuple(machine, 2),
    0x87: lambda machine: _short_tuple(machine, 3),
    ord("}"): lambda machine: machine.stack.append({}),
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("]"): lambda machine: machine.stack.append([]),
    ord("a"): _append,
    ord("e"): _appends,
    0x8C: lambda machine: machine.text(1),
    ord("X"): lambda machine: machine.text(4),
    ord("K"): lambda machine: machine.stack.append(machine.byte()),
    ord("M"): lambda machine: machine.stack.append(machine.number(2)),
    ord("J"): lambda machine: machine.stack.append(machine.number(4, signed=True)),
    0x8A: _long,
    ord("G"): _real,
    ord("N"): lambda machine: machine.stack.append(None),
    0x88: lambda machine: machine.stack.append(True),
    0x89: lambda machine: machine.stack.append(False),
    ord("q"): lambda machine: machine.remember(machine.byte()),
    ord("r"): lambda machine: machine.remember(machine.number(4)),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("h"): lambda machine: machine.stack.append(machine.memo[machine.byte()]),
    ord("j"): lambda machine: machine.stack.append(machine.memo[machine.number(4)]),
}
