import io
import os
import pickle
import shutil
import struct
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptrix.formats import torch_file
from adaptrix.tensor import FileRange
from tests.helpers.torch_archives import (
    archive,
    one,
    program,
    records_of,
    tensor,
    zipped,
)
from tests.helpers.torch_files import DTYPES, assert_same, code, random_tensor, read, refusal, saved

GOOD = one(tensor())


# what torch.save writes


def state_dict() -> "OrderedDict[str, torch.Tensor]":
    """Every dtype and every kind of tensor that a state dict can hold and safetensors can too."""
    base = torch.arange(24.0).reshape(4, 6)
    tensors = OrderedDict((name, random_tensor(dtype, 3, 5, seed=i)) for i, (name, dtype) in enumerate(DTYPES.items()))
    tensors |= {
        "base": base,
        "row view": base[1:3],
        "column view": base[:, 2:5],
        "transposed": base.t(),
        "steps": base[::2, ::3],
        "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        "bf16 transposed": torch.randn(3, 5).bfloat16().t(),
        "f8 transposed": torch.randn(3, 5).to(torch.float8_e5m2).t(),
        "scalar": torch.tensor(2.5),
        "scalar view": base[2, 3],
        "empty": torch.empty(0, 4),
        "empty transposed": torch.empty(2, 0, 4).transpose(0, 2),
        "one": torch.ones(1, 1, 1).as_strided((1, 1, 1), (7, 9, 1)),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "frozen": torch.nn.Parameter(torch.randn(2, 3), requires_grad=False),
        "buffer": torch.nn.Buffer(torch.randn(2)),
        "tied": base,
    }
    return tensors


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_writes(tmp_path: Path, protocol: int) -> None:
    tensors = state_dict()
    ours = read(tmp_path, saved(tensors, pickle_protocol=protocol))
    assert_same(ours, tensors)
    assert list(ours) == list(tensors)


@pytest.mark.parametrize("kind", list(DTYPES))
def test_contiguous_tensors_stay_in_the_file(tmp_path: Path, kind: str) -> None:
    tensors = {"w": random_tensor(DTYPES[kind], 6, 4)}
    tensors["view"] = tensors["w"][1:3]
    ours = read(tmp_path, saved(tensors))
    assert_same(ours, tensors)
    assert all(isinstance(tensor.data, FileRange) for tensor in ours.values())


def test_reads_a_modules_state_dict_with_its_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert_same(read(tmp_path, saved(module.state_dict())), module.state_dict())
    assert_same(read(tmp_path, saved(module.state_dict(keep_vars=True))), module.state_dict())
    assert_same(read(tmp_path, saved({"state_dict": module.state_dict()})), module.state_dict())


def test_reads_a_file_saved_by_name_with_more_than_256_things(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((2,), float(i)) for i in range(700)}
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert_same(torch_file.read(tmp_path / "adapter_model.bin"), tensors)


def test_reads_a_file_without_the_newer_records_and_with_directory_entries(tmp_path: Path) -> None:
    records = records_of(saved({"w": torch.ones(3)}))
    old = {key: item for key, item in records.items() if key.endswith(("data.pkl", "data/0", "version"))}
    assert_same(read(tmp_path, zipped({"archive/": b""} | old)), {"w": torch.ones(3)})


def test_reads_a_zip_without_zip64_end_and_one_without_crcs(tmp_path: Path) -> None:
    assert b"PK\6\6" not in GOOD
    assert read(tmp_path, GOOD)["w"].tobytes() == bytes(range(16))
    torch.serialization.set_crc32_options(False)
    try:
        content = saved({"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read(tmp_path, content), {"w": torch.ones(3)})


@settings(max_examples=150, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7)), max_size=4),
    offset=st.integers(0, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.int64]),
)
def test_any_view_is_read_as_torch_reads_it(
    tmp_path_factory: pytest.TempPathFactory, axes: list[tuple[int, int]], offset: int, dtype: torch.dtype
) -> None:
    shape, stride = tuple(count for count, _ in axes), tuple(step for _, step in axes)
    base = random_tensor(dtype, 100)
    try:
        view = base.as_strided(shape, stride, offset)
    except RuntimeError:
        return
    content = saved({"view": view})
    if view.numel() > 100:
        assert code(tmp_path_factory.getbasetemp(), content) in ("file-unsupported", "zip-bomb")
    else:
        assert_same(read(tmp_path_factory.getbasetemp(), content), {"view": view})


# what is none of it


def test_refuses_the_format_before_1_6(tmp_path: Path) -> None:
    for protocol in (2, 4):
        content = saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        error = refusal(tmp_path, content)
        assert error.problems[0].code == "file-unsupported"
        assert "save_file" in error.problems[0].remedy


STRANGERS = {
    "no bytes": (b"", "file-truncated"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "lfs-pointer"),
    "a web page": (b"<html><body>404</body></html>", "file-format"),
    "a bare pickle": (pickle.dumps({"a": 1}), "file-unsupported"),
    "safetensors": (struct.pack("<Q", 100) + b'{"a":{"dtype":"F32"', "file-format"),
    "text": (b"Entry not found", "file-format"),
    "the end missing": (GOOD[:-1], "file-truncated"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_names_what_is_no_torch_file(tmp_path: Path, kind: str) -> None:
    content, expected = STRANGERS[kind]
    error = refusal(tmp_path, content)
    assert [problem.code for problem in error.problems] == [expected]
    assert error.problems[0].remedy


def test_refuses_other_archives(tmp_path: Path) -> None:
    assert code(tmp_path, zipped({"word/document.xml": b"<xml/>"})) == "file-format"
    assert code(tmp_path, zipped({"data.pkl": b""})) == "file-format"
    assert code(tmp_path, zipped({})) in ("file-format", "file-truncated")
    assert code(tmp_path, archive(b"", {}, {"constants.pkl": b""})) == "file-unsupported"
    target = io.BytesIO()
    np.savez(target, a=np.ones(3))
    assert code(tmp_path, target.getvalue()) == "file-format"


def test_refuses_big_endian(tmp_path: Path) -> None:
    assert (
        code(tmp_path, archive(program({"w": tensor()}), {"0": bytes(16)}, {"byteorder": b"big"})) == "file-unsupported"
    )


class Runs:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


class Plain:
    pass


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr"), (shutil.rmtree, "shutil.rmtree")],
)
def test_refuses_to_run_anything_and_says_what(tmp_path: Path, function: Any, named: str, protocol: int) -> None:
    marker = tmp_path / "ran"
    error = refusal(tmp_path, saved({"w": Runs(function, f"touch {marker}")}, pickle_protocol=protocol))
    assert error.problems[0].code == "pickle-code"
    assert "would run" in str(error)
    assert named in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_refuses_objects(tmp_path: Path, protocol: int) -> None:
    assert code(tmp_path, saved({"w": Plain()}, pickle_protocol=protocol)) == "pickle-code"


@pytest.mark.parametrize(
    "value",
    [
        {"w": torch.ones(2), "epoch": 3},
        [torch.ones(2)],
        torch.ones(2),
        {3: torch.ones(2)},
        {"model": {"w": torch.ones(2)}},
    ],
)
def test_refuses_more_than_a_state_dict_by_name(tmp_path: Path, value: Any) -> None:
    error = refusal(tmp_path, saved(value))
    assert error.problems[0].code == "file-unsupported"
    assert not isinstance(value, dict) or str(next(key for key in value if key != "w")) in str(error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch.ones(2, device="meta"),
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.ones(2, dtype=torch.complex64).conj(),
        lambda: torch.ones(2).to(torch.float8_e4m3fnuz),
        lambda: torch.ones(2, 1).expand(2, 3),
    ],
)
def test_refuses_tensors_that_safetensors_cannot_hold(tmp_path: Path, make: Any) -> None:
    assert code(tmp_path, saved({"w": make()})) in (
        "file-unsupported",
        "dtype",
        "torch-file-invalid",
        "file-unsupported",
    )


def test_reports_every_tensor_at_once(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 1).expand(2, 3), "b": torch.ones(2), "c\n": torch.ones(1), "d": torch.ones(1) * 1j}
    error = refusal(tmp_path, saved(tensors))
    assert [problem.code for problem in error.problems] == ["file-unsupported", "tensor-name", "dtype"]


def test_256_tensors_cost_little(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({f"base_model.layers.{i}.lora_A.weight": torch.zeros(16, 64) for i in range(256)}, path)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch_file.read(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.06  # 7 ms on an idle machine; CI is not one
