"""Reading SakanaAI's format: what comes back is what was saved, and what is off is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptrix_text_to_lora import Hypernetwork, Shape, TextToLoRA
from adaptrix_text_to_lora.checkpoint import read_checkpoint
from adaptrix_text_to_lora.shape import Module, Variant

import adaptrix

MODULES = (Module("v_proj", 12, 7), Module("q_proj", 12, 18))
SHAPE = Shape("L", MODULES, layers=3, rank=8, embedding=9, latent=16, head_in=11)
Trained, Written = Callable[..., Hypernetwork], Callable[..., Path]


@pytest.mark.parametrize("variant", ["L", "M", "S"])
@pytest.mark.parametrize("bias", [True, False])
def test_what_was_saved_comes_back(
    variant: Variant, bias: bool, trained: Trained, written: Written, tmp_path: Path
) -> None:
    network = trained(replace(SHAPE, variant=variant, bias=bias))
    found = read_checkpoint(str(written(tmp_path / "it", network))).hypernetwork
    assert found.shape == network.shape
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert not found.training


def test_a_run_folder_has_its_files_above_the_checkpoints(trained: Trained, written: Written, tmp_path: Path) -> None:
    written(tmp_path, trained(SHAPE))
    deep = tmp_path / "checkpoints" / "it_100"
    deep.mkdir(parents=True)
    (tmp_path / "hypermod.pt").rename(deep / "hypermod.pt")
    assert read_checkpoint(str(deep / "hypermod.pt")).hypernetwork.shape == SHAPE


_PRINT = """
import sys, hashlib
from adaptrix_text_to_lora import TextToLoRA
adapter = TextToLoRA(sys.argv[1], encoder="hashed").generate("Añade números")
print([m.name for m in TextToLoRA(sys.argv[1], encoder="hashed").shape.modules])
for target, delta in adapter.deltas.items():
    print(target, hashlib.sha256(delta.A.tobytes() + delta.B.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_in_every_process(trained: Trained, written: Written, tmp_path: Path) -> None:
    folder = written(tmp_path / "it", trained(SHAPE))
    said = []
    for seed in ("1", "7"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        ran = [sys.executable, "-c", _PRINT, str(folder)]
        said.append(subprocess.run(ran, env=environment, capture_output=True, text=True, check=True).stdout)
    assert said[0].startswith("['v_proj', 'q_proj']"), "the order of the heads, not of an alphabet"
    assert len(set(said)) == 1


def test_the_scale_of_rslora_is_kept(trained: Trained, written: Written, tmp_path: Path) -> None:
    adapter = TextToLoRA(written(tmp_path / "it", trained(SHAPE)), encoder="hashed").generate("Add.")
    assert {delta.scale for delta in adapter.deltas.values()} == {16 / 8**0.5}
    plain = written(tmp_path / "plain", trained(SHAPE), use_rslora=False)
    adapter = TextToLoRA(plain, encoder="hashed").generate("Add.")
    assert {delta.scale for delta in adapter.deltas.values()} == {2.0}


def test_without_a_base_paths_are_llamas_and_it_says_so(trained: Trained, written: Written, tmp_path: Path) -> None:
    adapter = TextToLoRA(written(tmp_path / "it", trained(SHAPE)), encoder="hashed").generate("Add.")
    paths = {target.path for target in adapter.deltas}
    assert "model.layers.2.self_attn.v_proj" in paths
    assert len(paths) == 6
    assert adapter.base == "some/base"
    assert [problem.code for problem in adapter.problems] == ["unverified"]


def test_another_base_is_refused_with_all_that_differs(trained: Trained, written: Written, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 10}
    config = {"model_type": "mistral", **sizes, "num_hidden_layers": 4, "intermediate_size": 20, "vocab_size": 50}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(adaptrix.RefusedError) as error:
        TextToLoRA(written(tmp_path / "it", trained(SHAPE)), base, "hashed")
    found = {problem.where: (problem.found, problem.expected.split(",")[0]) for problem in error.value.problems}
    assert found == {
        "checkpoint layers": ("3", "4"),
        "checkpoint v_proj out": ("7", "10"),
        "checkpoint q_proj out": ("18", "20"),
    }


def _codes(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(adaptrix.AdaptrixError) as error:
        read_checkpoint(str(folder))
    return [(problem.code, str(problem)) for problem in error.value.problems]


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(trained: Trained, written: Written, tmp_path: Path) -> None:
    folder = written(tmp_path / "it", trained(SHAPE))
    torch.save({"heads.q_proj.weight": _Evil(tmp_path / "ran")}, folder / "hypermod.pt")
    assert len(_codes(folder)) == 1
    (folder / "hypermod.pt").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    assert len(_codes(folder)) == 1
    (folder / "args.yaml").write_text(f'!!python/object/apply:pathlib.Path.touch ["{tmp_path / "ran"}"]')
    assert _codes(folder)[0][0] == "config-value"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_damaged_file_is_refused(size: int, trained: Trained, written: Written, tmp_path: Path) -> None:
    file = written(tmp_path / "it", trained(SHAPE)) / "hypermod.pt"
    file.write_bytes(file.read_bytes()[:size])
    assert _codes(file.parent)


def _changed(state: dict[str, torch.Tensor], change: str) -> dict[str, torch.Tensor]:
    if change == "lacks":
        del state["mlp2.mlp.4.bias"], state["heads.q_proj.bias"]
    elif change == "adds":
        state["mlp9.weight"] = torch.zeros(2)
    elif change == "shape":
        state["mlp1.mlp.0.weight"] = torch.zeros(3)
    elif change == "nan":
        state["mixer.1.weight"][0, 0] = torch.nan
    elif change == "integer":
        state["mixer.1.weight"] = state["mixer.1.weight"].long()
    elif change == "rank":
        state["AB_offset.A.q_proj"] = torch.zeros(3, 4, 12)
    elif change == "name":
        state["heads.values.weight"] = state["heads.q_proj.weight"]
    elif change == "rotary":
        state |= {"out_emb.q_proj.A": torch.zeros(16), "heads.v_proj.weight": torch.zeros(12, 11)}
    elif change == "empty":
        state.clear()
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lacks", "heads.q_proj.bias, mlp2.mlp.4.bias"),
        ("adds", "mlp9.weight"),
        ("shape", "shape [3]; expected [16]"),
        ("nan", "1 of 1024 numbers are NaN or Inf"),
        ("integer", "its dtype is I64"),
        ("rank", "rank 4; expected 8"),
        ("name", "'values' is no name"),
        ("rotary", "without learned ranks"),
        ("empty", "no heads"),
    ],
)
def test_every_tensor_is_held_to_the_format(
    change: str, said: str, trained: Trained, written: Written, tmp_path: Path
) -> None:
    network = trained(SHAPE)
    folder = written(tmp_path / "it", network)
    torch.save(_changed(dict(network.state_dict()), change), folder / "hypermod.pt")
    assert any(said in text for _, text in _codes(folder)), _codes(folder)


def test_statistics_may_be_left_out_where_nothing_uses_them(trained: Trained, written: Written, tmp_path: Path) -> None:
    network = trained(SHAPE)
    state = {name: tensor for name, tensor in network.state_dict().items() if "recon_target" not in name}
    folder = written(tmp_path / "it", network)
    torch.save(state, folder / "hypermod.pt")
    assert read_checkpoint(str(folder)).hypernetwork.shape == SHAPE
    written(tmp_path / "it", network, {"training_task": "recon", "pred_z_score": True})
    torch.save(state, folder / "hypermod.pt")
    assert "mean_recon_target" in _codes(folder)[0][1]


@pytest.mark.parametrize(
    ("args", "config", "said"),
    [
        ({"encoder_type": "vq"}, {}, "encoder_type: 'vq'; expected linear"),
        ({"use_one_hot_task_emb": True}, {}, "use_one_hot_task_emb: True"),
        ({"training_task": "play"}, {}, "sft or recon"),
        ({"shared_AB_head": True}, {}, "shared_AB_head: False; expected True"),
        ({"head_in_size": 512}, {}, "head_in_size: 11; expected 512"),
        ({}, {"r": 0}, " r: 0"),
        ({}, {"r": 4}, "rank 8; expected 4"),
        ({}, {"lora_alpha": "16"}, "lora_alpha: '16'"),
        ({}, {"use_dora": True}, "use_dora: True"),
        ({}, {"target_modules": ["q_proj", "k_proj"]}, "k_proj, q_proj, as target_modules say"),
        ({}, {"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_what_the_other_files_say_is_believed_or_refused(
    args: dict[str, Any], config: dict[str, Any], said: str, trained: Trained, written: Written, tmp_path: Path
) -> None:
    folder = written(tmp_path / "it", trained(SHAPE), args, **config)
    assert any(said in text for _, text in _codes(folder)), _codes(folder)


@pytest.mark.parametrize("name", ["hypermod.pt", "args.yaml", "adapter_config.json"])
def test_a_missing_file_is_named(name: str, trained: Trained, written: Written, tmp_path: Path) -> None:
    folder = written(tmp_path / "it", trained(SHAPE))
    (folder / name).unlink()
    assert name in _codes(folder)[0][1]
