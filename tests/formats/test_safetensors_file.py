import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.tensor import DTYPES, FileRange, Tensor
from tests.helpers.torch_files import DTYPES as TORCH
from tests.helpers.torch_files import assert_same, random_tensor

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def packed(header: Any, data: bytes = b"1234", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def refusal(tmp_path: Path, content: bytes) -> RefusedError:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as caught:
        safetensors_file.read(path)
    assert str(path) in str(caught.value)
    return caught.value


def codes(tmp_path: Path, content: bytes) -> list[str]:
    return [problem.code for problem in refusal(tmp_path, content).problems]


@pytest.fixture
def everything() -> dict[str, torch.Tensor]:
    tensors = {name: random_tensor(dtype, 3, 5, seed=i) for i, (name, dtype) in enumerate(TORCH.items())}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "Ünï.日本": torch.ones(2)}


def test_reads_what_the_reference_writes(tmp_path: Path, everything: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(everything, path, {"format": "pt", "note": "é\n"})
    tensors, metadata = safetensors_file.read(path)
    assert_same(tensors, everything)
    assert metadata == {"format": "pt", "note": "é\n"}
    offsets = [tensor.data.offset for tensor in tensors.values() if isinstance(tensor.data, FileRange)]
    assert len(offsets) == len(tensors)
    assert offsets == sorted(offsets)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(list(DTYPES)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a", "b"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=2000)
@given(header=JSON, data=st.binary(max_size=16))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(packed(header, data))
    try:
        tensors, _ = safetensors_file.read(path)
    except RefusedError:
        return
    assert_same(tensors, safetensors.torch.load_file(path))


STRANGERS = {
    "no bytes": (b"", "file-truncated"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "lfs-pointer"),
    "a web page": (b"\n<!DOCTYPE html><html><head><title>404</title></head></html>", "file-format"),
    "an archive": (b"PK\3\4" + bytes(60), "file-format"),
    "text": (b"Entry not found", "file-format"),
    "a header too large": (packed({"a": F32}, length=100_000_001), "file-too-large"),
    "a header cut off": (packed({"a": F32}, length=5000), "file-truncated"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_names_what_is_no_safetensors_file(tmp_path: Path, case: str) -> None:
    content, code = STRANGERS[case]
    error = refusal(tmp_path, content)
    assert [problem.code for problem in error.problems] == [code]
    assert error.problems[0].remedy


def test_names_a_pickle_and_gguf_under_this_name(tmp_path: Path) -> None:
    assert ".bin" in str(refusal(tmp_path, b"\x80\x02}q\x00."))
    assert ".gguf" in str(refusal(tmp_path, b"GGUF\3\0\0\0" + bytes(50)))


def test_an_lfs_pointer_says_how_to_fetch_the_file(tmp_path: Path) -> None:
    assert "git lfs pull" in str(refusal(tmp_path, STRANGERS["a pointer"][0]))


HEADERS = {
    "not JSON": (b'{"a": nope}', "safetensors-invalid"),
    "not UTF-8": (b'{"\xff": 1}', "safetensors-invalid"),
    "too deep": (b'{"a":' + b"[" * 200_000, "safetensors-invalid"),
    "balanced but too deep": (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "safetensors-invalid"),
    "nearly too deep": (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", "safetensors-invalid"),
    "half a character": (b'{"\\ud800": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "tensor-name"),
    "half a character in metadata": (b'{"__metadata__": {"a": "\\udfff"}}', "safetensors-invalid"),
    "text after it": (b'{} {"a": 1}', "safetensors-invalid"),
    "twice a tensor": (b'{"a":{},"a":{}}', "safetensors-invalid"),
    "twice a field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "safetensors-invalid"),
    "metadata not text": (b'{"__metadata__":{"a":1}}', "safetensors-invalid"),
    "metadata a list": (b'{"__metadata__":[]}', "safetensors-invalid"),
    "NaN": (b'{"a": NaN}', "safetensors-invalid"),
    "a million digits": (b'{"a": ' + b"9" * 1_000_000 + b"}", "safetensors-invalid"),
    "millions of things": (b'{"a": [' + b"{}," * 3_000_000 + b"{}]}", "file-too-large"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_refuses_a_bad_header(tmp_path: Path, case: str) -> None:
    text, code = HEADERS[case]
    assert codes(tmp_path, packed(text)) == [code]


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"shape": [-1]}, "safetensors-invalid"),
    "minus nought": ({"shape": [1, "-0"]}, "safetensors-invalid"),
    "huge": ({"shape": [10**30]}, "safetensors-invalid"),
    "overflowing": ({"shape": [2**62, 2**62, 2**62]}, "safetensors-invalid"),
    "empty and uncountable": ({"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "safetensors-invalid"),
    "a bool for a size": ({"shape": [True]}, "safetensors-invalid"),
    "a float for a size": ({"shape": [1.0]}, "safetensors-invalid"),
    "no list": ({"shape": 1}, "safetensors-invalid"),
    "no dtype known": ({"dtype": "F6_E3M2"}, "dtype"),
    "a dtype of no type": ({"dtype": ["F32"]}, "dtype"),
    "three offsets": ({"data_offsets": [0, 4, 4]}, "safetensors-invalid"),
    "offsets backwards": ({"data_offsets": [4, 0]}, "safetensors-invalid"),
    "offsets of another size": ({"data_offsets": [0, 5]}, "safetensors-invalid"),
    "a bool for an offset": ({"data_offsets": [False, 4]}, "safetensors-invalid"),
    "a field too many": ({"scale": 2}, "safetensors-invalid"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_refuses_a_bad_tensor_by_name(tmp_path: Path, case: str) -> None:
    change, code = TENSORS[case]
    error = refusal(tmp_path, packed({"the.name": {**F32, **change}}))
    assert [problem.code for problem in error.problems] == [code]
    assert "the.name" in str(error)


@pytest.mark.parametrize(
    "name", ["", "a\x00b", "a\x1b[31m", "a\u202eb", "/etc/passwd", "a/../b", "..", "a\\b", "x" * 1025]
)
def test_refuses_a_dangerous_name(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path, packed({name: F32}))
    assert [problem.code for problem in error.problems] == ["tensor-name"]
    assert str(error).isprintable()
    with pytest.raises(RefusedError, match="name"):
        safetensors_file.write(tmp_path / "y", {name: Tensor("F32", (1,), b"1234")}, {})


def test_an_unknown_dtype_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    assert "BF16" in str(refusal(tmp_path, packed({"a": {**F32, "dtype": "Q4_K"}})))


def test_reports_every_tensor_at_once(tmp_path: Path) -> None:
    bad = {"a": {**F32, "dtype": "F7"}, "b": {**F32, "shape": [-1]}, "c": F32, "d\n": F32, "e": []}
    assert codes(tmp_path, packed(bad)) == ["dtype", "safetensors-invalid", "tensor-name", "safetensors-invalid"]


def test_a_hundred_problems_are_enough(tmp_path: Path) -> None:
    error = refusal(tmp_path, packed({f"t{i}": {} for i in range(5000)}))
    assert len(error.problems) == 101
    assert "there are more" in str(error)


@pytest.mark.parametrize(
    ("tensors", "data", "expected"),
    [
        ({"a": F32, "b": F32}, b"12345678", ["safetensors-invalid"] * 2),
        ({"a": {**F32, "data_offsets": [4, 8]}}, b"12345678", ["safetensors-invalid"]),
        ({"a": F32}, b"12345", ["safetensors-invalid"]),
        ({}, b"1", ["safetensors-invalid"]),
        ({"a": F32, "b": {**F32, "data_offsets": [4, 8]}}, b"12345", ["file-truncated"]),
    ],
)
def test_the_data_is_covered_exactly_once(tmp_path: Path, tensors: Any, data: bytes, expected: list[str]) -> None:
    assert codes(tmp_path, packed(tensors, data)) == expected


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path), lambda path: None])
def test_refuses_what_is_no_file(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(RefusedError):
        safetensors_file.read(path)


def test_refuses_a_device_and_a_name_with_nul() -> None:
    for path in (Path("/dev/zero"), Path("a\0b"), Path("x" * 5000)):
        with pytest.raises(RefusedError):
            safetensors_file.read(path)


def test_4096_tensors_cost_little(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        f"base_model.model.layers.{i}.q_proj.lora_A.weight": Tensor("F16", (4, 2), bytes(16)) for i in range(4096)
    }
    safetensors_file.write(path, tensors, {})
    times = []
    for _ in range(5):
        start = time.perf_counter()
        safetensors_file.read(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15  # 22 ms on an idle machine; CI is not one


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ml_dtypes', 'rich', 'huggingface_hub', 'safetensors', 'zipfile'}"
    modules = "adaptrix.formats.safetensors_file, adaptrix.formats.torch_file"
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
