"""The main job: ``adaptrix convert tloen/alpaca-lora-7b``, from a Hub on the loopback and nothing else."""

import json
import sys

import numpy as np
import pytest

from adaptrix.formats import safetensors_file, torch_file
from tests.helpers import hub_server
from tests.helpers.sources import NAME, published  # noqa: F401  # a fixture

hub = hub_server.hub


@pytest.fixture
def convert(hub, tmp_path, published):  # noqa: F811  # the fixture
    hub.add_repo(NAME, published)
    (tmp_path / "work").mkdir()

    def call(*options, **env):
        command = (sys.executable, "-m", "adaptrix", "convert", NAME, "--json", *options)
        return hub.run(hub.env(tmp_path, **env), *command, cwd=tmp_path / "work")

    return call


def test_it_works_and_fetches_the_adapter_alone(convert, hub, tmp_path, published):  # noqa: F811  # the fixture
    done = convert()
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["results"]
    assert (told["adapter"]["family"], told["adapter"]["dims"]) == ("llama", "inferred")
    codes = {problem["code"]: problem for problem in told["problems"]}
    assert "decapoda-research/llama-7b-hf" in codes["base-unusable"]["where"]
    assert "hidden = 16" in codes["dims-inferred"]["found"]
    fetched = {line.rpartition("/")[2] for line in hub.asked() if "/resolve/" in line}
    assert fetched == {"adapter_config.json", "adapter_model.bin"}


def test_every_tensor_is_there_byte_for_byte(convert, tmp_path, published):  # noqa: F811  # the fixture
    assert convert().returncode == 0
    written, metadata = safetensors_file.read(tmp_path / "work" / "alpaca-lora-7b.adaptrix.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(published["adapter_model.bin"])
    source = torch_file.read(tmp_path / "adapter_model.bin")
    assert len(written) == len(source) == 16
    manifest = json.loads(metadata["adaptrix"])
    for site, entry in manifest["deltas"].items():
        for factor in ("lora_A", "lora_B"):
            published_name = f"base_model.model.{entry['module']}.{factor}.weight"
            np.testing.assert_array_equal(written[f"{site}.{factor}"].numpy(), source[published_name].numpy())
    assert manifest["source"]["config"] == json.loads(published["adapter_config.json"])
    assert manifest["source"]["uri"] == NAME
    assert manifest["source"]["commit"]


def test_it_works_again_offline_from_the_cache(convert, hub):
    assert convert().returncode == 0
    hub.asked()
    again = convert("--force", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert hub.asked() == []
    (told,) = json.loads(again.stdout)["results"]
    assert "hub-from-cache" in {problem["code"] for problem in told["problems"]}


def test_a_base_that_is_there_is_checked_against(convert, hub):
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    hub.add_repo("other/llama", {"config.json": json.dumps(config), "model.safetensors": "not to be touched"})
    (fits,) = json.loads(convert("--base", "other/llama").stdout)["results"]
    assert fits["ok"]
    assert "dims-inferred" not in {problem["code"] for problem in fits["problems"]}
    hub.add_repo("other/wide", {"config.json": json.dumps(config | {"hidden_size": 32})})
    hub.asked()
    refused = convert("--base", "other/wide", "--force")
    assert refused.returncode == 1
    (told,) = json.loads(refused.stdout)["results"]
    assert {problem["code"] for problem in told["problems"]} == {"shape"}
    assert len(told["problems"]) == 1 + 2 * 4 * 2  # the cause, and both axes of q k v o in two layers
    assert not any("model.safetensors" in line for line in hub.asked())


def test_a_base_that_is_asked_for_and_missing_is_unreachable(convert):
    assert convert("--base", "other/gone").returncode == 3


def test_an_injection_file_made_without_its_base_meets_it_later(convert, hub, tmp_path):
    """Inferred dims are no more than that: the base, once it is there, is asked again."""
    assert convert().returncode == 0
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    hub.add_repo("decapoda-research/llama-7b-hf", {"config.json": json.dumps(config)})
    command = (sys.executable, "-m", "adaptrix", "check", "alpaca-lora-7b.adaptrix.safetensors", "--json")
    done = hub.run(hub.env(tmp_path), *command, cwd=tmp_path / "work")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert {problem["code"] for problem in problems if problem["severity"] == "error"} == {"shape"}
