"""mlx-lm's folders: what is in them, and every one that contradicts itself refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import adaptrix
from tests.helpers.make import adapter

A, B = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(16, dtype=np.float32).reshape(2, 8)
Q = "model.layers.0.self_attn.q_proj"
PAIR = {f"{Q}.lora_a": A, f"{Q}.lora_b": B}
PARAMETERS = {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}


def folder(path: Path, tensors: dict[str, Any] = PAIR, **config: Any) -> Path:
    save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, path / "adapters.safetensors")
    whole = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": PARAMETERS, **config}
    (path / "adapter_config.json").write_text(json.dumps(whole))
    return path


def refused(path: Path) -> list[adaptrix.Problem]:
    return [one for one in adaptrix.check(path).problems if one.severity == "error"]


def test_factors_are_transposed_and_the_scale_is_no_alpha(tmp_path: Path) -> None:
    (delta,) = adaptrix.load(folder(tmp_path)).deltas.values()
    np.testing.assert_array_equal(delta.dense(), 20 * (A @ B).T)


def test_a_folder_of_ours_names_every_module_by_its_full_path(tmp_path: Path) -> None:
    done = adaptrix.convert(adapter(2), tmp_path / "x", to="mlx")
    config = json.loads((done / "adapter_config.json").read_text())
    assert config["num_layers"] == -1
    assert len(config["lora_parameters"]["keys"]) == 6
    assert all(key.startswith("model.layers.") for key in config["lora_parameters"]["keys"])


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"fine_tune_type": "full"}, "adapter_config.json"),
        ({"fine_tune_type": "ia3"}, "adapter_config.json fine_tune_type"),
        ({"lora_parameters": {"rank": 2, "alpha": 4}}, "adapter_config.json lora_parameters.scale"),
        ({"lora_parameters": {"scale": float("nan")}}, "adapter_config.json lora_parameters.scale"),
        ({"fine_tune_type": "dora"}, Q),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], where: str) -> None:
    (problem,) = refused(folder(tmp_path, **changes))
    assert problem.where == where


def test_more_layers_than_num_layers(tmp_path: Path) -> None:
    more = {name.replace("layers.0", f"layers.{layer}"): each for name, each in PAIR.items() for layer in range(3)}
    (problem,) = refused(folder(tmp_path, more, num_layers=2))
    assert problem.where == "adapter_config.json num_layers"
    whole = {**PARAMETERS, "keys": [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]}
    assert not refused(folder(tmp_path, more, num_layers=2, lora_parameters=whole))


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({f"{Q}.lora_a": A}, "adapter-incomplete"),
        ({**PAIR, f"{Q}.weight": A}, "tensor-unexpected"),
        ({**PAIR, f"{Q}.lora_b": B.T}, "rank"),
        ({**PAIR, f"{Q}.m": np.ones(8, np.float32)}, "adapter-incomplete"),
        ({**PAIR, f"{Q}.lora_a": A.astype(np.int32)}, "dtype"),
    ],
)
def test_tensors_that_make_no_lora(tmp_path: Path, tensors: dict[str, Any], code: str) -> None:
    assert [problem.code for problem in refused(folder(tmp_path, tensors))] == [code]


def test_an_embedding_that_is_the_head_too_is_refused(tmp_path: Path) -> None:
    embedding = {"model.embed_tokens.lora_a": np.ones((40, 2), np.float32), "model.embed_tokens.lora_b": B[:, :6]}
    (tmp_path / "source").mkdir()
    source = folder(tmp_path / "source", {**PAIR, **embedding}, lora_parameters={**PARAMETERS, "keys": None})
    base = {"model_type": "qwen2", "hidden_size": 6, "num_attention_heads": 1, "num_hidden_layers": 1}
    sizes = {"head_dim": 8, "intermediate_size": 9, "vocab_size": 40}
    for tied in (True, None, False):
        stated = {} if tied is None else {"tie_word_embeddings": tied}
        (tmp_path / "config.json").write_text(json.dumps({**base, **sizes, **stated}))
        made = tmp_path / f"x-{tied}"
        if tied is False:
            assert adaptrix.convert(source, made, to="mlx", base=str(tmp_path)).is_dir()
            continue
        with pytest.raises(adaptrix.RefusedError, match="ties its embedding to its head"):
            adaptrix.convert(source, made, to="mlx", base=str(tmp_path))
        assert not made.exists()
