"""GGUF adapters: what is in the file, and every file that is none refused in a sentence."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.errors import AdaptrixError
from adaptrix.formats import gguf_file
from adaptrix.tensor import Tensor
from tests.helpers import hub_server
from tests.helpers.hub_server import Hub

hub = hub_server.hub

A, B = np.arange(12, dtype=np.float32).reshape(2, 6), np.arange(16, dtype=np.float32).reshape(8, 2)
PAIR = {"blk.0.attn_v.weight.lora_a": Tensor.of(A), "blk.0.attn_v.weight.lora_b": Tensor.of(B)}
Entry = tuple[gguf_file.Kind, gguf_file.Value]
METADATA: dict[str, Entry] = {
    "general.architecture": ("string", "llama"),
    "general.type": ("string", "adapter"),
    "adapter.type": ("string", "lora"),
    "adapter.lora.alpha": ("float32", 3.0),
}


def written(
    folder: Path, tensors: dict[str, Tensor] = PAIR, **metadata: tuple[gguf_file.Kind, gguf_file.Value]
) -> Path:
    file = folder / "lora.gguf"
    gguf_file.write(file, tensors, METADATA | {key.replace("__", "."): value for key, value in metadata.items()})
    return file


def refused(path: Path) -> list[adaptrix.Problem]:
    return [one for one in adaptrix.check(path).problems if one.severity == "error"]


def test_a_file_is_aligned_and_lists_dimensions_the_fastest_first(tmp_path: Path) -> None:
    data = written(tmp_path).read_bytes()
    assert data[:24] == b"GGUF" + struct.pack("<IQQ", 3, 2, len(METADATA))
    assert struct.pack("<IQQ", 2, 6, 2) in data  # A is [r, in] and its sizes in, r
    assert len(data) % 32 == 0
    tensors, metadata = gguf_file.read(tmp_path / "lora.gguf")
    assert metadata == {key: value for key, (_, value) in METADATA.items()}
    assert {name: each.numpy().tolist() for name, each in tensors.items()} == {
        "blk.0.attn_v.weight.lora_a": A.tolist(),
        "blk.0.attn_v.weight.lora_b": B.tolist(),
    }


def test_the_scale_is_alpha_over_the_rank_of_the_tensor(tmp_path: Path) -> None:
    (delta,) = adaptrix.load(written(tmp_path)).deltas.values()
    np.testing.assert_array_equal(delta.dense(), 1.5 * B @ A)


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf")])
def test_an_alpha_that_means_nothing_is_refused(tmp_path: Path, alpha: float) -> None:
    (problem,) = refused(written(tmp_path, adapter__lora__alpha=("float32", alpha)))
    assert problem.where == "adapter.lora.alpha"


def test_an_activated_lora_keeps_its_tokens_through_every_format_that_has_them(tmp_path: Path) -> None:
    source = written(tmp_path, adapter__alora__invocation_tokens=("uint32s", [5, 6]))
    assert [one.code for one in adaptrix.load(source).problems] == ["conditional"]
    for to in ("peft", "injection", "gguf"):
        source = adaptrix.convert(source, tmp_path / f"x-{to}", to=to)
        assert adaptrix.load(source).provenance.config["alora_invocation_tokens"] == [5, 6]
    with pytest.raises(adaptrix.UsageError, match="invocation tokens"):
        adaptrix.convert(source, tmp_path / "x-mlx", to="mlx")


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    (problem,) = refused(written(tmp_path, general__type=("string", "model")))
    assert problem.code == "full-model"


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({"blk.0.attn_v.weight.lora_a": Tensor.of(A)}, "adapter-incomplete"),
        ({**PAIR, "blk.0.attn_v.weight": Tensor.of(A)}, "tensor-unexpected"),
        ({**PAIR, "blk.0.attn_v.weight.lora_b": Tensor.of(A)}, "shape"),
        ({name.replace("attn_v", "attn_x"): each for name, each in PAIR.items()}, "site-missing"),
    ],
)
def test_tensors_that_make_no_lora(tmp_path: Path, tensors: dict[str, Tensor], code: str) -> None:
    assert [problem.code for problem in refused(written(tmp_path, tensors))] == [code]


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (struct.pack(">I", 3), "big-endian"),
        (struct.pack("<I", 1), "version 1"),
        (struct.pack("<IQ", 3, 1 << 60), "1152921504606846976 tensors"),
        (struct.pack("<IQQ", 3, 2, 4) + struct.pack("<Q", 1 << 62), "ends within its header"),
    ],
)
def test_headers_that_claim_too_much(tmp_path: Path, start: bytes, said: str) -> None:
    data = written(tmp_path).read_bytes()
    (tmp_path / "lora.gguf").write_bytes(b"GGUF" + start + data[4 + len(start) :])
    (problem,) = refused(tmp_path / "lora.gguf")
    assert said in str(problem)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    shape = struct.pack("<IQQ", 2, 6, 2)
    file.write_bytes(file.read_bytes().replace(shape + struct.pack("<I", 0), shape + struct.pack("<I", 8)))
    (problem,) = refused(file)
    assert "quantised" in problem.found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_read_and_never_raises_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "lora.gguf"
    file.unlink(missing_ok=True)
    content = bytearray(written(tmp_path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(content)))
    file.write_bytes(content[:cut])
    try:
        tensors, _ = gguf_file.read(file)
        for tensor in tensors.values():
            tensor.tobytes()
    except AdaptrixError:
        pass


def test_models_on_the_hub_are_not_fetched_for_their_name(hub: Hub, tmp_path: Path) -> None:
    model, lora = tmp_path / "model", tmp_path / "lora"
    model.mkdir(), lora.mkdir()
    whole = written(model, general__type=("string", "model")).read_bytes() + bytes(1 << 20)
    hub.add_repo("o/model", {"model-q4.gguf": whole})
    hub.add_repo("o/both", {"model-q4.gguf": whole, "lora.gguf": written(lora).read_bytes()})
    env = hub.env(tmp_path)
    refusal = hub.run(env, sys.executable, "-m", "adaptrix", "inspect", "o/model")
    assert refusal.returncode == 1
    assert "this is a GGUF model" in refusal.stderr
    assert [request.range for request in hub.requests if "/resolve/" in request.path] == ["bytes=0-65535"]
    hub.requests.clear()
    found = hub.run(env, sys.executable, "-m", "adaptrix", "inspect", "o/both")
    assert found.returncode == 0, found.stderr
    assert "taken for llama, as the file says" in found.stderr
    assert all(request.range for request in hub.requests if "model-q4" in request.path)


@pytest.mark.parametrize("tokens", [("uint32s", []), ("string", "5 6"), ("uint32", 5)])
def test_invocation_tokens_that_are_none_are_refused(tmp_path: Path, tokens: Entry) -> None:
    (problem,) = refused(written(tmp_path, adapter__alora__invocation_tokens=tokens))
    assert problem.where == "adapter.alora.invocation_tokens"


def test_the_base_is_named_and_found_again(tmp_path: Path) -> None:
    made = replace(adaptrix.load(written(tmp_path)), base="acme/llama-9b")
    out = adaptrix.convert(made, tmp_path / "named.gguf", to="gguf")
    assert adaptrix.load(out).base == "acme/llama-9b"


@pytest.mark.parametrize("alpha", [0.0, 1e-60, 1e60])
def test_an_alpha_that_the_file_cannot_hold_is_refused(tmp_path: Path, alpha: float) -> None:
    made = adaptrix.load(written(tmp_path))
    deltas = {target: replace(delta, alpha=alpha) for target, delta in made.deltas.items()}
    with pytest.raises(adaptrix.RefusedError, match="alpha is"):
        adaptrix.convert(replace(made, deltas=deltas), tmp_path / "x.gguf", to="gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("to", "dtype"), [("gguf", "fp64"), ("mlx", "fp64"), ("mlx", "fp8")])
def test_dtypes_that_the_runtime_does_not_compute_with_are_refused(tmp_path: Path, to: str, dtype: str) -> None:
    with pytest.raises(adaptrix.RefusedError, match=r"F64|F8"):
        adaptrix.convert(written(tmp_path), tmp_path / "x", to=to, dtype=dtype)


def test_a_folder_of_peft_stays_one_beside_a_file_of_mlx(tmp_path: Path) -> None:
    adaptrix.convert(written(tmp_path), tmp_path / "both", to="peft")
    (tmp_path / "both" / "adapters.safetensors").write_bytes(b"x")
    assert adaptrix.load(tmp_path / "both").provenance.format == "peft"
