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
    "beyond its storage": (tensor(None, 1), "torch-file-invalid"),
    "a stride beyond": (tensor(None, 0, (2,), (4,)), "torch-file-invalid"),
    "a stride that overflows": (tensor(None, 0, (3,), (1 << 62,)), "torch-file-invalid"),
    "a negative stride": (tensor(None, 3, (4,), (-1,)), "torch-file-invalid"),
    "a negative offset": (tensor(None, -1), "torch-file-invalid"),
    "a negative size": (tensor(None, 0, (-4,)), "torch-file-invalid"),
    "two strides": (tensor(None, 0, (4,), (1, 1)), "torch-file-invalid"),
    "65 axes": (tensor(None, 0, (1,) * 65, (1,) * 65), "torch-file-invalid"),
    "expanded": (tensor(None, 0, (5,), (0,)), "file-unsupported"),
    "expanded without end": (tensor(None, 0, (BOMB,), (0,)), "file-unsupported"),
    "uncountable": (tensor(None, 0, (BOMB, BOMB, 0), (0, 0, 0)), "torch-file-invalid"),
    "a size that is no number": (tensor(None, 0, ("4",), (1,)), "torch-file-invalid"),
    "a size that is a bool": (tensor(None, 0, (True,), (1,)), "torch-file-invalid"),
    "a size that is a list": (tensor(None, 0, b"]", b"]"), "torch-file-invalid"),
    "an offset beyond numbers": (tensor(None, 1 << 63), "torch-file-invalid"),
    "metadata": (tensor(None, 0, (4,), (1,), {"conj": True}), "torch-file-invalid"),
    "too few arguments": (call(V2, storage(), 0, (4,)), "torch-file-invalid"),
    "no arguments": (V2 + b")R", "torch-file-invalid"),
    "arguments in a list": (V2 + b"]R", "torch-file-invalid"),
    "no storage": (tensor(value(3)), "torch-file-invalid"),
    "a typed storage for v3": (
        call(V3, storage(), 0, (4,), (1,), False, None, name("torch", "float32")),
        "torch-file-invalid",
    ),
    "a storage as dtype": (
        call(V3, storage(kind=name("torch.storage", "UntypedStorage")), 0, (4,), (1,), False, None, FLOAT),
        "torch-file-invalid",
    ),
    "a call of a dtype": (call(name("torch", "float32")), "torch-file-invalid"),
    "a call of text": (call(value("os.system"), "true"), "torch-file-invalid"),
    "a parameter of nothing": (call(name("torch._utils", "_rebuild_parameter"), 1, True, None), "torch-file-invalid"),
    "storage of another size": (tensor(storage(count=5)), "file-truncated"),
    "storage that is not there": (tensor(storage("7")), "file-truncated"),
    "storage without end": (tensor(storage(count=(1 << 63) - 1)), "file-truncated"),
    "storage of minus one": (tensor(storage(count=-1)), "torch-file-invalid"),
    "storage of a bool": (tensor(storage(count=True)), "torch-file-invalid"),
    "storage elsewhere": (tensor(storage("../0")), "torch-file-invalid"),
    "storage of no kind": (tensor(storage(kind=value("FloatStorage"))), "torch-file-invalid"),
    "storage of a dtype": (tensor(storage(kind=name("torch", "float32"))), "torch-file-invalid"),
    "storage by number": (tensor(storage(0)), "torch-file-invalid"),
    "storage of no tag": (tensor(storage(tag="module")), "torch-file-invalid"),
    "a short reference": (tensor(value(("storage",)) + b"Q"), "torch-file-invalid"),
    "a reference that is text": (tensor(value("storage") + b"Q"), "torch-file-invalid"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_refuses_a_bad_tensor(tmp_path: Path, case: str) -> None:
    body, expected = TENSORS[case]
    assert code(tmp_path, one(body)) == expected


PICKLES = {
    "nothing": (b"", "torch-file-invalid"),
    "no protocol": (b"}.", "torch-file-invalid"),
    "protocol 9": (b"\x80\x09}.", "torch-file-invalid"),
    "no end": (b"\x80\x02}", "torch-file-invalid"),
    "nothing at the end": (b"\x80\x02.", "torch-file-invalid"),
    "two at the end": (b"\x80\x02}}.", "torch-file-invalid"),
    "a mark at the end": (b"\x80\x02(}.", "torch-file-invalid"),
    "more after the end": (b"\x80\x02}.}.", "torch-file-invalid"),
    "a memo that was not set": (b"\x80\x02h\x05.", "torch-file-invalid"),
    "a memo index bomb": (b"\x80\x02}r\xff\xff\xff\xff.", ""),
    "a memo of nothing": (b"\x80\x02q\x00.", "torch-file-invalid"),
    "INST": (b"\x80\x02(ios\nsystem\n.", "pickle-code"),
    "OBJ": (b"\x80\x02(cos\nsystem\no.", "pickle-code"),
    "OBJ of nothing": (b"\x80\x02(o.", "pickle-code"),
    "NEWOBJ": (b"\x80\x02N)\x81.", "pickle-code"),
    "NEWOBJ_EX": (b"\x80\x04N)}\x92.", "pickle-code"),
    "EXT1": (b"\x80\x02\x82\x01.", "pickle-code"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "pickle-code"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "pickle-code"),
    "LONG4": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "torch-file-invalid"),
    "LONG1": (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "torch-file-invalid"),
    "BYTEARRAY8": (b"\x80\x05\x96" + b"\xff" * 8 + b".", "torch-file-invalid"),
    "text without end": (b"\x80\x02X\xff\xff\xff\xffa.", "torch-file-invalid"),
    "text that is not UTF-8": (b"\x80\x02X\1\0\0\0\xff.", "torch-file-invalid"),
    "a name without end": (b"\x80\x02c" + b"a" * 1_000_000, "torch-file-invalid"),
    "a name that is not UTF-8": (b"\x80\x02c\xff\n\xff\n.", "torch-file-invalid"),
    "a name of numbers": (b"\x80\x04K\1K\1\x93.", "torch-file-invalid"),
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
    "a tuple bomb within limits": (b"\x80\x02N" + b"\x85" * 150_000 + b".", "file-unsupported"),
    "a list bomb": (b"\x80\x02]" + b"]" * 90_000 + b"a" * 90_000 + b".", "file-unsupported"),
    "a mark bomb": (b"\x80\x02" + b"(" * 1_000_000 + b".", "torch-file-invalid"),
    "a dict bomb": (b"\x80\x02" + b"}" * 4_000_000 + b".", "zip-bomb"),
    "doubling": (b"\x80\x02]q\0" + b"(h\0h\0e" * 40 + b".", "file-unsupported"),
    "doubling tuples": (b"\x80\x02)" + b"q\0h\0h\0\x86" * 200 + b".", "torch-file-invalid"),
    "a deep key": (b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns.", "torch-file-invalid"),
    "a key that is a dict": (b"\x80\x02}}Ns.", "torch-file-invalid"),
    "a key twice": (b"\x80\x02}" + (value("a") + b"Ns") * 2 + b".", "torch-file-invalid"),
    "a key alone": (b"\x80\x02}(" + value("a") + b"u.", "torch-file-invalid"),
    "an item set on a list": (b"\x80\x02]" + value("a") + b"Ns.", "torch-file-invalid"),
    "an item appended to a dict": (b"\x80\x02}Na.", "torch-file-invalid"),
    "attributes of a tensor": (b"\x80\x02" + tensor() + b"}b.", "torch-file-invalid"),
    "attributes of a function": (b"\x80\x02" + V2 + b"}b.", "torch-file-invalid"),
    "a dict that holds itself": (b"\x80\x02}q\0" + value("a") + b"h\0s.", "file-unsupported"),
    "a function": (b"\x80\x02" + V2 + b".", "file-unsupported"),
    "an OrderedDict of arguments": (
        b"\x80\x02" + call(name("collections", "OrderedDict"), {}) + b".",
        "torch-file-invalid",
    ),
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
        "torch-file-invalid",
    ),
    "a type's function": (
        program({"w": call(name("torch._tensor", "_rebuild_from_type_v2"), FLOAT, name("torch", "Tensor"), (), {})}),
        "torch-file-invalid",
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
    assert code(tmp_path, archive(program({"a": tensor(), "b": half}), {"0": bytes(range(16))})) == "torch-file-invalid"


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
