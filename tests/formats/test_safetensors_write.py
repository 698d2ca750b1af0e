import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptrix.errors import RefusedError
from adaptrix.formats import safetensors_file
from adaptrix.tensor import DTYPES, Tensor
from tests.helpers.torch_files import DTYPES as TORCH
from tests.helpers.torch_files import assert_same, random_tensor


@pytest.fixture
def everything() -> dict[str, torch.Tensor]:
    tensors = {name: random_tensor(dtype, 3, 5, seed=i) for i, (name, dtype) in enumerate(TORCH.items())}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "Ünï.日本": torch.ones(2)}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_writes_the_bytes_the_reference_writes(
    tmp_path: Path, everything: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.torch.save_file(everything, theirs, metadata or None)
    tensors, read_back = safetensors_file.read(theirs)
    safetensors_file.write(ours, tensors, read_back)
    assert ours.read_bytes() == theirs.read_bytes()


@st.composite
def tensor_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(
        st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9), unique=True, max_size=8)
    )
    result = {}
    for name in names:
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        nbytes = int(np.prod(shape, dtype=int)) * DTYPES[dtype][0]
        top = 1 if dtype == "BOOL" else 255
        data = bytes(draw(st.lists(st.integers(0, top), min_size=nbytes, max_size=nbytes)))
        result[name] = Tensor(dtype, shape, data)
    return result


@settings(max_examples=80, deadline=None)
@given(tensors=tensor_dicts(), metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], metadata: Any) -> None:
    metadata = {key: value for key, value in metadata.items() if key.isprintable()}
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    safetensors_file.write(path, tensors, metadata)
    again, texts = safetensors_file.read(path)
    assert texts == metadata
    assert_same(again, safetensors.torch.load_file(path))
    assert {name: (t.dtype, t.shape, t.tobytes()) for name, t in again.items()} == {
        name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()
    }


def test_write_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        safetensors_file.write(tmp_path / "x", {}, {})


def test_write_refuses_a_tensor_without_its_bytes(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="tensor 'a'"):
        safetensors_file.write(tmp_path / "x", {"a": Tensor("F32", (2,), b"1234")}, {})
    with pytest.raises(RefusedError, match="__metadata__"):
        safetensors_file.write(tmp_path / "x", {"__metadata__": Tensor("F32", (1,), b"1234")}, {})
    assert not (tmp_path / "x").exists()


def test_write_fails_when_a_source_shrank(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, source)
    tensors, _ = safetensors_file.read(source)
    os.truncate(source, 5000)
    with pytest.raises(RefusedError) as caught:
        safetensors_file.write(tmp_path / "x", tensors, {})
    assert caught.value.problems[0].code == "file-changed"


def test_write_mixes_files_and_memory(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    safetensors.torch.save_file({name: torch.randn(3, 4) for name in "abcdef"}, source)
    tensors, _ = safetensors_file.read(source)
    mixed = {name: Tensor(t.dtype, t.shape, t.tobytes()) if name in "bd" else t for name, t in tensors.items()}
    safetensors_file.write(tmp_path / "x", mixed, {})
    assert_same(safetensors_file.read(tmp_path / "x")[0], safetensors.torch.load_file(source))
