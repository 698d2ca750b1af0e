"""Checkpoints in SakanaAI's format, written by the same modules, with random numbers and no head at zero."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from adaptrix_text_to_lora import Hypernetwork, Shape

from adaptrix import cli
from adaptrix.plugins import installed
from tests.helpers.json_documents import document

FLAGS = {"L": (False, False), "M": (True, False), "S": (True, True)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def trained() -> Callable[..., Hypernetwork]:
    """A hypernetwork as training might leave it: every number random, offsets and statistics too."""

    def made(shape: Shape, seed: int = 0) -> Hypernetwork:
        torch.manual_seed(seed)
        hypernetwork = Hypernetwork(shape).eval()
        for name, tensor in hypernetwork.state_dict().items():
            if name.startswith(("heads", "AB_offset", "mean_", "std_")):
                tensor.normal_(std=0.1)
        return hypernetwork

    return made


@pytest.fixture
def written() -> Callable[..., Path]:
    """Writes a hypernetwork's three files into a folder, which it returns; ``args`` and ``config`` override."""

    def write(folder: Path, hypernetwork: Hypernetwork, args: dict[str, Any] | None = None, **config: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        shape = hypernetwork.shape
        shared, ranked = FLAGS[shape.variant]
        torch.save(hypernetwork.state_dict(), folder / "hypermod.pt")
        said = {
            "model_dir": "mistralai/Mistral-7B-Instruct-v0.2/",
            "emb_model": "",
            "training_task": "sft",
            "shared_AB_head": shared,
            "autoreg_gen": ranked,
            "learnable_pos_emb": ranked,
            "hypernet_latent_size": shape.latent,
            "head_in_size": shape.head_in,
            "use_one_hot_task_emb": False,
        }
        (folder / "args.yaml").write_text(yaml.safe_dump({**said, **(args or {})}))
        names = sorted(module.name for module in shape.modules)
        lora = {"peft_type": "LORA", "r": shape.rank, "lora_alpha": 2 * shape.rank, "use_rslora": True}
        lora |= {"target_modules": names, "base_model_name_or_path": "some/base"}
        (folder / "adapter_config.json").write_text(json.dumps({**lora, **config}))
        return folder

    return write


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EntryPoint, ...]:
    """The plugin found by its entry point, whether or not it is installed here."""
    info = tmp_path / "site" / "adaptrix_text_to_lora-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adaptrix-text-to-lora\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[adaptrix]\ntext-to-lora = adaptrix_text_to_lora\n")
    monkeypatch.syspath_prepend(str(info.parent))
    return tuple(entry for entry in installed.every_entry_point() if entry.name == "text-to-lora")


@pytest.fixture
def run(
    plugin: tuple[EntryPoint, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[int, Any]]:
    """Runs ``adaptrix …`` in the test's folder: the exit code, and the JSON that it printed."""
    monkeypatch.chdir(tmp_path)

    def ran(*args: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = cli.run([*args, "--json"])
        return code, document(capsys.readouterr().out, code)

    return ran
