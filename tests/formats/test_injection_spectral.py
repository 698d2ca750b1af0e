"""Injection files with spectral deltas that come from strangers."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.base.svd import SvdCache
from adaptrix.delta.kinds import KINDS, one_of
from adaptrix.formats import safetensors_file
from adaptrix.inspection import summarise
from adaptrix.tensor import Tensor
from tests.helpers.command_line import Place
from tests.helpers.odd_json import changed, put
from tests.helpers.spectral_models import saved_base, spectral_adapter

K = "layers.1.k"  # 20 × 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest and the tensors of a file that has U and V, and one that has none."""
    folder = tmp_path_factory.mktemp("made")
    base = saved_base(folder / "base", "llama")
    adapter = spectral_adapter(base, "llama", SvdCache(folder / "svd"))
    files = {}
    for vectors in ("include", "omit"):
        path = folder / f"{vectors}.adaptrix.safetensors"
        adaptrix.convert(adapter, path, base=base, vectors=vectors, layers="1")
        tensors, metadata = safetensors_file.read(path)
        files[vectors] = json.loads(metadata["adaptrix"]), tensors
    return files


def written(tmp_path, said, tensors):
    file = tmp_path / "bad.adaptrix.safetensors"
    file.unlink(missing_ok=True)
    safetensors_file.write(file, tensors, {"adaptrix": json.dumps(said)})
    return file


def codes(file):
    return {problem.code for problem in adaptrix.check(file).problems if problem.severity == "error"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_manifest_is_refused_or_harmless(made, tmp_path, data):
    said, tensors = made[data.draw(st.sampled_from(["include", "omit"]))]
    entry = said["deltas"][K]
    for _ in range(data.draw(st.integers(1, 2))):
        entry = changed(entry, data.draw)
    file = written(tmp_path, put(said, ("deltas", K), entry), tensors)
    report = adaptrix.check(file)
    if report.bound is not None:
        json.dumps(summarise(report.bound).as_dict())
    if report.ok:
        with suppress(adaptrix.AdaptrixError):  # nothing else
            adaptrix.convert(file, tmp_path / "x", to="peft", force=True, layers="all")


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (("kind",), "spectrum", "injection-invalid"),
        (("kind",), None, "injection-invalid"),
        (("kind",), "lora", "adapter-incomplete"),
        (("shape",), [20, 25], "shape"),
        (("shape",), [24, 20], "shape"),
        (("shape",), [1 << 39, 1 << 39], "shape"),
        (("shape",), [1 << 41, 20], "injection-invalid"),
        (("shape",), [20, 0], "injection-invalid"),
        (("shape",), [20, -1], "injection-invalid"),
        (("shape",), [20], "injection-invalid"),
        (("shape",), [20.0, 24.0], "injection-invalid"),
        (("rank",), 19, "rank"),
        (("scale",), 2.0, "rank"),
        (("vectors",), False, "adapter-incomplete"),
        (("vectors",), 1, "adapter-incomplete"),
        (("basis",), None, "injection-invalid"),
        (("basis", "weight"), "abc", "injection-invalid"),
        (("basis", "weight"), "A" * 64, "injection-invalid"),
        (("basis", "dtype"), "I8", "injection-invalid"),
        (("basis", "backend"), "x\n", "injection-invalid"),
        (("slots",), [0, 3], "injection-invalid"),
        (("module",), "model.embed_tokens", "injection-invalid"),
    ],
)
def test_an_entry_that_is_none(made, tmp_path, key, value, code):
    said, tensors = made["include"]
    file = written(tmp_path, put(said, ("deltas", K, *key), value), tensors)
    try:
        found = codes(file)
    except adaptrix.RefusedError as error:
        found = {problem.code for problem in error.problems}
    assert code in found


@pytest.mark.parametrize(
    ("name", "tensor", "code"),
    [
        ("z", Tensor.of(np.float32(1)), "shape"),
        ("z", Tensor.of(np.ones(21, np.float32)), "shape"),
        ("z", Tensor.of(np.ones(20, np.int32)), "dtype"),
        ("z", Tensor.of(np.full(20, np.nan)), "nonfinite"),
        ("S", Tensor.of(np.ones((20, 1), np.float32)), "shape"),
        ("S", Tensor.of(np.ones(20)), "dtype"),
        ("S", Tensor.of(-np.ones(20, np.float32)), "injection-invalid"),
        ("S", Tensor.of(np.arange(20, dtype=np.float32)), "injection-invalid"),
        ("S", Tensor.of(np.full(20, np.inf, np.float32)), "nonfinite"),
        ("U", Tensor.of(np.ones((20, 24), np.float32)), "shape"),
        ("U", Tensor.of(np.ones((20, 20), np.float16)), "dtype"),
        ("U", Tensor.of(np.full((20, 20), np.nan, np.float32)), "nonfinite"),
        ("Vt", Tensor.of(np.ones((20, 20), np.float32)), "shape"),
        ("z", None, "adapter-incomplete"),
        ("S", None, "adapter-incomplete"),
        ("U", None, "adapter-incomplete"),
        ("X", Tensor.of(np.ones(20, np.float32)), "tensor-unexpected"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be(made, tmp_path, name, tensor, code):
    said, tensors = made["include"]
    tensors = dict(tensors)
    tensors.pop(f"{K}.spectral_{name}", None)
    if tensor is not None:
        tensors[f"{K}.spectral_{name}"] = tensor
    assert code in codes(written(tmp_path, said, tensors))


def test_vectors_that_are_not_orthonormal_make_no_lora(made, tmp_path):
    said, tensors = made["include"]
    doubled = Tensor.of(2 * tensors[f"{K}.spectral_U"].numpy())
    skewed = Tensor.of(np.ones((20, 20), np.float32))
    for number, bad in enumerate((doubled, skewed)):
        file = written(tmp_path, said, {**tensors, f"{K}.spectral_U": bad})
        with pytest.raises(adaptrix.RefusedError) as error:
            adaptrix.convert(file, tmp_path / str(number), to="peft", rank=5, max_error=0.99, prune=True)
        assert [(problem.code, problem.where) for problem in error.value.problems] == [("svd-mismatch", K)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [("z", np.nan, "nonfinite"), ("z", np.inf, "nonfinite"), ("S", np.inf, "nonfinite"), ("z", 1e120, "overflow")],
)
def test_numbers_that_no_lora_has_room_for(made, tmp_path, name, value, code):
    said, tensors = made["include"]
    numbers = tensors[f"{K}.spectral_{name}"].numpy().astype(np.float64 if name == "z" else np.float32)
    numbers[0] = value
    file = written(tmp_path, said, {**tensors, f"{K}.spectral_{name}": Tensor.of(numbers)})
    assert adaptrix.convert(file, tmp_path / "x.adaptrix.safetensors", allow_nonfinite=True).exists()
    for options in ({}, {"rank": 5, "max_error": 1.0}):
        with pytest.raises(adaptrix.RefusedError) as error:
            adaptrix.convert(file, tmp_path / "x", to="peft", allow_nonfinite=True, **options)
        assert [(problem.code, problem.where) for problem in error.value.problems] == [(code, K)]


def test_an_unknown_kind_is_told_once_and_plainly(made, tmp_path, capsys):
    said, tensors = made["omit"]
    file = written(tmp_path, put(said, ("deltas", K, "kind"), "fourier"), tensors)
    code, _, err = Place(tmp_path, capsys).run("check", file)
    assert code == 1
    assert f"{K}: a delta of kind 'fourier'; expected {one_of(KINDS)}. Update adaptrix" in err
    assert "does not mention" not in err


def test_a_check_says_that_it_read_no_weights(made, tmp_path):
    said, tensors = made["omit"]
    report = adaptrix.check(written(tmp_path, said, tensors))
    assert report.ok
    assert [p.code for p in report.problems if p.code == "unverified"] == ["unverified"]
