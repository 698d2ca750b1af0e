"""Which files of a folder transformers is given, and what it may not run."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptrix.base.loading import in_fp32, load_config, model_class, own_files
from adaptrix.base.model import base_model_at, placement
from adaptrix.errors import RefusedError
from adaptrix.pipeline import Pipeline
from tests.helpers.families import tiny_model
from tests.helpers.merge_models import pair

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("loading"), "llama")


def test_an_adapter_beside_the_weights_is_not_put_on_the_base(made, tmp_path):
    """transformers puts it on by itself, and takes the weights of the base that its config names."""
    other = tmp_path / "other"
    base = tmp_path / "base"
    for folder in (base, other):
        tiny_model("llama").save_pretrained(folder)
    weights = load_file(base / "model.safetensors")
    save_file({name: 0.5 * one for name, one in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for file in made.adapter.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(other)}
    (base / "adapter_config.json").write_text(json.dumps(config))
    with base_model_at(str(base), Pipeline(), placement("cpu", None)).model() as model:
        state = model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(state[name], weights[name].float())
    assert not [key for key in state if "lora_" in key]
    assert torch.equal(in_fp32(base, "base").state_dict()[name], weights[name].float())


def test_links_are_to_the_files_of_a_model_alone(made, tmp_path):
    for name in (
        "config.json",
        "model.safetensors",
        "modeling_x.py",
        "adapter_config.json",
        "adapter_model.safetensors",
    ):
        (tmp_path / name).write_text("{}")
    (tmp_path / "mine.adaptrix.safetensors").write_text("")
    with own_files(tmp_path) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not folder.exists()


def test_code_of_a_base_is_neither_run_nor_asked_about(made, tmp_path):
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    trace = tmp_path / "it-ran"
    (base / "own.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nfrom transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (base / "config.json").write_text(json.dumps(config))
    words = ["merge", made.adapter, "--base", base, "-o", tmp_path / "out", "--verify"]
    done = subprocess.run(
        [sys.executable, "-m", "adaptrix", *map(str, words)],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert "without running Python code that comes with it" in done.stderr
    assert "custom code" not in done.stdout + done.stderr
    assert not trace.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["Trainer", "AutoModel", "pipeline", "GPT2LMHeadModel", "logging", "os", 7])
def test_a_config_may_name_model_classes_of_its_own_type_alone(made, name):
    config = load_config(made.base, "base")
    config.architectures = [name]
    with pytest.raises(RefusedError, match="names the class"):
        model_class(config, "base")


def _calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names & {"from_pretrained", "from_config", "_from_config"}


def test_transformers_opens_files_in_one_place_alone():
    """Where it is called at all, it is told to run no code and to fetch nothing."""
    files = [*(ROOT / "adaptrix").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    places = {str(path.relative_to(ROOT)) for path in files if _calls(path)}
    assert places == {"adaptrix/base/loading.py", "adaptrix/base/model.py"}  # the latter: from tensors, not from files
