"""Ways to damage a file: blind ones, and ones that know its structure."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from tests.helpers.torch_archives import records_of, zipped

Mutation = Callable[[bytes, random.Random], bytes]

_EDGES = [0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1]


def flip(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(content: bytes, rng: random.Random) -> bytes:
    at, width = rng.randrange(len(content)), rng.choice([1, 2, 4, 8])
    new = (rng.choice(_EDGES) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return content[:at] + new + content[at + width :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(content: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    return rng.choice([content[:a] + content[b:], content[:b] + content[a:c] + content[b:], content[:c] + content[a:]])


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 2, 8])) + content[at:]


BLIND: list[Mutation] = [flip, flip, overwrite, overwrite, cut, splice, insert]

_JSON_VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 4, 1.0, 1e300, 2**31, 2**63, 2**64, 10**30, "", "F32", "I8", "a", "\0", "\ud800"),
    *([], {}, [0, 0], [0], [1, 2, 3], [[]], {"dtype": "F32"}, float("nan")),
]


def _places(value: Any, parent: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    if parent is not None:
        yield parent, key
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for child_key, child in list(children):
        yield from _places(child, value, child_key)


def header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with something in its header's JSON replaced, removed, renamed or doubled."""
    length = int.from_bytes(content[:8], "little")
    info, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice([1, 1, 2])):
        parent, key = rng.choice(list(_places(info)))
        match rng.randrange(4):
            case 0:
                parent[key] = deepcopy(rng.choice(_JSON_VALUES))
            case 1 if isinstance(parent[key], int):
                parent[key] += rng.choice([-4, -1, 1, 4])
            case 2:
                del parent[key]
            case _ if isinstance(parent, dict):
                parent[rng.choice([*parent, "x", "../x", "__metadata__"])] = deepcopy(parent[key])
            case _:
                parent.append(deepcopy(parent[key]))
        if not info:
            break
    text = json.dumps(info).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_text(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with its header damaged blindly and its length put right."""
    length = int.from_bytes(content[:8], "little")
    text = rng.choice(BLIND)(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


_OPCODES = (
    b".(0123FNIJKLMQRSTUVXabcdGehijlopqrstu})]\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x93\x94\x95\x96"
)


def opcodes(content: bytes, rng: random.Random) -> bytes:
    """A torch file whose pickle has opcodes or their arguments changed, in a zip that is sound."""
    records = records_of(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    program = bytearray(records[name])
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(program))
        match rng.randrange(4):
            case 0:
                program[at] = rng.choice(_OPCODES)
            case 1:
                program.insert(at, rng.choice(_OPCODES))
            case 2:
                del program[at]
            case _:
                program[at : at + 1] = bytes([rng.randrange(256)])
    return zipped(records | {name: bytes(program)})


def pickle_bytes(content: bytes, rng: random.Random) -> bytes:
    """A torch file whose pickle is damaged blindly, in a zip that is sound."""
    records = records_of(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    return zipped(records | {name: rng.choice(BLIND)(records[name], rng)})


def numbers(content: bytes, rng: random.Random) -> bytes:
    """A torch file with the small numbers of its pickle (sizes, strides, offsets, keys) changed."""
    records = records_of(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    program = bytearray(records[name])
    places = [at + 1 for at in range(len(program) - 1) if program[at] == 0x4B]  # BININT1
    for _ in range(rng.choice([1, 2, 3])):
        program[rng.choice(places)] = rng.choice([0, 1, 2, 3, 4, 5, 6, 8, 12, 24, 255])
    return zipped(records | {name: bytes(program)})


def directory(content: bytes, rng: random.Random) -> bytes:
    """A torch file with its zip directory, its end or its first local header damaged."""
    length = int.from_bytes(content[-22:][12:16], "little") + 98
    tail = max(0, len(content) - length)
    if rng.random() < 0.2:
        return overwrite(content[:120], rng)[:120] + content[120:]
    return content[:tail] + rng.choice([flip, overwrite])(content[tail:], rng)


SAFETENSORS: list[Mutation] = [*BLIND, header, header, header, header_text, header_text]
TORCH: list[Mutation] = [*BLIND, opcodes, opcodes, opcodes, pickle_bytes, numbers, numbers, directory, directory]
