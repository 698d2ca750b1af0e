"""Archives and pickles that no torch.save wrote: each is refused, quickly, and says why."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.torch_archives import (
    FLOAT,
    V2,
    V3,
    archive,
    call,
    name,
    one,
    program,
    storage,
    tensor,
    value,
)
from tests.helpers.torch_files import code, read, refusal

GOOD = one(tensor())

# archives put together by hand

BOMB = (1 << 62) + 1

TENSORS = {
    "beyond its storage": (tensor(None, 1), "out-of-bounds"),
    "a stride beyond": (tensor(None, 0, (2,), (4,)), "out-of-bounds"),
    "a stride that overflows": (tensor(None, 0, (3,), (1 << 62,)), "out-of-bounds"),
    "a negative stride": (tensor(None, 3, (4,), (-1,)), "bad-shape"),
    "a negative offset": (tensor(None, -1), "bad-shape"),
    "a negative size": (tensor(None, 0, (-4,)), "bad-shape"),
    "two strides": (tensor(None, 0, (4,), (1, 1)), "bad-shape"),
    "65 axes": (tensor(None, 0, (1,) * 65, (1,) * 65), "bad-shape"),
    "expanded": (tensor(None, 0, (5,), (0,)), "expanded"),
    "expanded without end": (tensor(None, 0, (BOMB,), (0,)), "expanded"),
    "uncountable": (tensor(None, 0, (BOMB, BOMB, 0), (0, 0, 0)), "bad-shape"),
    "a size that is no number": (tensor(None, 0, ("4",), (1,)), "bad-pickle"),
    "a size that is a bool": (tensor(None, 0, (True,), (1,)), "bad-pickle"),
    "a size that is a list": (tensor(None, 0, b"]", b"]"), "bad-pickle"),
    "an offset beyond numbers": (tensor(None, 1 << 63), "bad-pickle"),
    "metadata": (tensor(None, 0, (4,), (1,), {"conj": True}), "bad-pickle"),
    "too few arguments": (call(V2, storage(), 0, (4,)), "bad-pickle"),
    "no arguments": (V2 + b")R", "bad-pickle"),
    "arguments in a list": (V2 + b"]R", "bad-pickle"),
    "no storage": (tensor(value(3)), "bad-pickle"),
    "a typed storage for v3": (call(V3, storage(), 0, (4,), (1,), False, None, name("torch", "float32")), "bad-pickle"),
    "a storage as dtype": (
        call(V3, storage(kind=name("torch.storage", "UntypedStorage")), 0, (4,), (1,), False, None, FLOAT),
        "bad-pickle",
    ),
    "a call of a dtype": (call(name("torch", "float32")), "bad-pickle"),
    "a call of text": (call(value("os.system"), "true"), "bad-pickle"),
    "a parameter of nothing": (call(name("torch._utils", "_rebuild_parameter"), 1, True, None), "bad-pickle"),
    "storage of another size": (tensor(storage(count=5)), "truncated"),
    "storage that is not there": (tensor(storage("7")), "truncated"),
    "storage without end": (tensor(storage(count=(1 << 63) - 1)), "truncated"),
    "storage of minus one": (tensor(storage(count=-1)), "bad-pickle"),
    "storage of a bool": (tensor(storage(count=True)), "bad-pickle"),
    "storage elsewhere": (tensor(storage("../0")), "bad-pickle"),
    "storage of no kind": (tensor(storage(kind=value("FloatStorage"))), "bad-pickle"),
    "storage of a dtype": (tensor(storage(kind=name("torch", "float32"))), "bad-pickle"),
    "storage by number": (tensor(storage(0)), "bad-pickle"),
    "storage of no tag": (tensor(storage(tag="module")), "bad-pickle"),
    "a short reference": (tensor(value(("storage",)) + b"Q"), "bad-pickle"),
    "a reference that is text": (tensor(value("storage") + b"Q"), "bad-pickle"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_refuses_a_bad_tensor(tmp_path: Path, case: str) -> None:
    body, expected = TENSORS[case]
    assert code(tmp_path, one(body)) == expected


PICKLES = {
    "nothing": (b"", "bad-pickle"),
    "no protocol": (b"}.", "bad-pickle"),
    "protocol 9": (b"\x80\x09}.", "bad-pickle"),
    "no end": (b"\x80\x02}", "bad-pickle"),
    "nothing at the end": (b"\x80\x02.", "bad-pickle"),
    "two at the end": (b"\x80\x02}}.", "bad-pickle"),
    "a mark at the end": (b"\x80\x02(}.", "bad-pickle"),
    "more after the end": (b"\x80\x02}.}.", "bad-pickle"),
    "a memo that was not set": (b"\x80\x02h\x05.", "bad-pickle"),
    "a memo index bomb": (b"\x80\x02}r\xff\xff\xff\xff.", ""),
    "a memo of nothing": (b"\x80\x02q\x00.", "bad-pickle"),
    "INST": (b"\x80\x02(ios\nsystem\n.", "pickle-code"),
    "OBJ": (b"\x80\x02(cos\nsystem\no.", "pickle-code"),
    "OBJ of nothing": (b"\x80\x02(o.", "pickle-code"),
    "NEWOBJ": (b"\x80\x02N)\x81.", "pickle-code"),
    "NEWOBJ_EX": (b"\x80\x04N)}\x92.", "pickle-code"),
    "EXT1": (b"\x80\x02\x82\x01.", "pickle-code"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "pickle-code"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "pickle-code"),
    "LONG4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "bad-pickle"),
    "LONG1": (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "bad-pickle"),
    "BYTEARRAY8": (b"\x80\x05\x96" + b"\xff" * 8 + b".", "bad-pickle"),
    "text without end": (b"\x80\x02X\xff\xff\xff\xffa.", "bad-pickle"),
    "text that is not UTF-8": (b"\x80\x02X\1\0\0\0\xff.", "bad-pickle"),
    "a name without end": (b"\x80\x02c" + b"a" * 1_000_000, "bad-pickle"),
    "a name that is not UTF-8": (b"\x80\x02c\xff\n\xff\n.", "bad-pickle"),
    "a name of numbers": (b"\x80\x04K\1K\1\x93.", "bad-pickle"),
    "a name with dots": (
        b"\x80\x04" + value("torch") + value("_utils._rebuild_tensor_v2.__globals__") + b"\x93.",
        "pickle-code",
    ),
    "a name split elsewhere": (
        b"\x80\x04" + value("torch._utils._rebuild_tensor_v2.") + value("x") + b"\x93.",
        "pickle-code",
    ),
    "a name that hides": (b"\x80\x04" + value("os\x1b[2J") + value("system\u202e") + b"\x93.", "pickle-code"),
    "a tuple bomb": (b"\x80\x02N" + b"\x85" * 1_000_000 + b".", "zip-bomb"),
    "a tuple bomb within limits": (b"\x80\x02N" + b"\x85" * 150_000 + b".", "not-a-state-dict"),
    "a list bomb": (b"\x80\x02]" + b"]" * 90_000 + b"a" * 90_000 + b".", "not-a-state-dict"),
    "a mark bomb": (b"\x80\x02" + b"(" * 1_000_000 + b".", "bad-pickle"),
    "a dict bomb": (b"\x80\x02" + b"}" * 4_000_000 + b".", "zip-bomb"),
    "doubling": (b"\x80\x02]q\0" + b"(h\0h\0e" * 40 + b".", "not-a-state-dict"),
    "doubling tuples": (b"\x80\x02)" + b"q\0h\0h\0\x86" * 200 + b".", "bad-pickle"),
    "a deep key": (b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns.", "bad-pickle"),
    "a key that is a dict": (b"\x80\x02}}Ns.", "bad-pickle"),
    "a key twice": (b"\x80\x02}" + (value("a") + b"Ns") * 2 + b".", "bad-pickle"),
    "a key alone": (b"\x80\x02}(" + value("a") + b"u.", "bad-pickle"),
    "an item set on a list": (b"\x80\x02]" + value("a") + b"Ns.", "bad-pickle"),
    "an item appended to a dict": (b"\x80\x02}Na.", "bad-pickle"),
    "attributes of a tensor": (b"\x80\x02" + tensor() + b"}b.", "bad-pickle"),
    "attributes of a function": (b"\x80\x02" + V2 + b"}b.", "bad-pickle"),
    "a dict that holds itself": (b"\x80\x02}q\0" + value("a") + b"h\0s.", "not-a-state-dict"),
    "a function": (b"\x80\x02" + V2 + b".", "not-a-state-dict"),
    "an OrderedDict of arguments": (b"\x80\x02" + call(name("collections", "OrderedDict"), {}) + b".", "bad-pickle"),
    "a type's attributes": (
        program(
            {
                "w": call(
                    name("torch._tensor", "_rebuild_from_type_v2"),
                    V2,
                    name("torch", "Tensor"),
                    (storage(), 0, (4,), (1,), False, None),
                    {"data": tensor()},
                )
            }
        ),
        "bad-pickle",
    ),
    "a type's function": (
        program({"w": call(name("torch._tensor", "_rebuild_from_type_v2"), FLOAT, name("torch", "Tensor"), (), {})}),
        "bad-pickle",
    ),
}


@pytest.mark.parametrize("case", PICKLES)
def test_refuses_a_hostile_pickle(tmp_path: Path, case: str) -> None:
    content, expected = PICKLES[case]
    packed = archive(content, {"0": bytes(16)})
    if expected:
        error = refusal(tmp_path, packed)
        assert error.problems[0].code == expected
        assert str(error).isprintable()
    else:
        assert read(tmp_path, packed) == {}


def test_one_storage_named_a_million_times_is_a_bomb(tmp_path: Path) -> None:
    body = {f"w{i}": tensor() for i in range(200)}
    content = archive(program(body), {"0": bytes(16)})
    assert len(read(tmp_path, content)) == 200
    wide = {f"w{i}": tensor(storage(count=25_000), 0, (25_000,)) for i in range(200)}
    assert code(tmp_path, archive(program(wide), {"0": bytes(100_000)})) == "zip-bomb"


def test_one_storage_of_two_types_is_refused(tmp_path: Path) -> None:
    half = tensor(storage(kind=name("torch", "HalfStorage"), count=8), 0, (8,))
    assert code(tmp_path, archive(program({"a": tensor(), "b": half}), {"0": bytes(range(16))})) == "bad-pickle"


HOSTILE_MEMORY = """
import sys
from pathlib import Path
import adaptrix.formats.torch_file as torch_file, adaptrix.formats.safetensors_file as safetensors_file
from adaptrix.errors import RefusedError

def peak():  # in kB; ru_maxrss will not do, it begins with the peak of the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

base = peak()
for name in sys.argv[1:]:
    try:
        (torch_file if name.endswith("bin") else safetensors_file).read(Path(name))
    except RefusedError:
        pass
print((peak() - base) // 1024)
"""


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    pickles = [content for content, _ in PICKLES.values()]
    pickles += [
        b"\x80\x02" + piece * 400_000 + b"." for piece in (b"}\x94", b")\x94\x85", b"J\xff\xff\xff\x7f\x94", b"(")
    ]
    padded = {f"pad{i}": b"" for i in range(3000)}
    contents = [archive(content, {"0": bytes(16)}, padded) for content in pickles[-4:]]
    contents += [archive(content, {"0": bytes(16)}) for content in pickles] + [
        one(body) for body, _ in TENSORS.values()
    ]
    names = []
    for number, content in enumerate(contents):
        names.append(str(tmp_path / f"{number}.bin"))
        Path(names[-1]).write_bytes(content)
    header = b'{"a": [' + b"{}," * 990_000 + b"{}]}"
    names.append(str(tmp_path / "x.safetensors"))
    Path(names[-1]).write_bytes(struct.pack("<Q", len(header)) + header)
    done = subprocess.run([sys.executable, "-c", HOSTILE_MEMORY, *names], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400, f"{done.stdout} MiB"
