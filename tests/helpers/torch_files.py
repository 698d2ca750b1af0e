"""Torch files written and read, and what torch says the bytes of a tensor are."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptrix.errors import RefusedError
from adaptrix.formats import torch_file
from adaptrix.tensor import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def torch_bytes(tensor: torch.Tensor) -> bytes:
    """The elements row by row."""
    raw = tensor.detach()
    raw = raw.view(torch.uint8) if raw.dtype.itemsize == 1 else raw  # copying a bool would tidy its bits
    flat = torch.empty(raw.numel(), dtype=raw.dtype)
    flat.copy_(raw.reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def random_tensor(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random bits as ``dtype`` (any bit pattern, NaNs included; bools are 0 or 1)."""
    count = torch.empty(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return (raw > 127).reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Both hold the same names, dtypes, shapes and bytes."""
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == NAMES[tensor.dtype], name
        assert ours[name].shape == tuple(tensor.shape), name
        assert ours[name].tobytes() == torch_bytes(tensor), name


def saved(value: object, **options: Any) -> bytes:
    target = io.BytesIO()
    torch.save(value, target, **options)
    return target.getvalue()


def read(tmp_path: Path, content: bytes) -> dict[str, Tensor]:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    return torch_file.read(path)


def refusal(tmp_path: Path, content: bytes) -> RefusedError:
    start = time.perf_counter()
    with pytest.raises(RefusedError) as caught:
        read(tmp_path, content)
    assert time.perf_counter() - start < 5
    assert str(tmp_path) in str(caught.value)
    return caught.value


def code(tmp_path: Path, content: bytes) -> str:
    return refusal(tmp_path, content).problems[0].code
