"""The base that a stranger's config records is asked of the Hub only where it can be a repository."""

import json
import shutil
from pathlib import Path

import pytest

import adaptrix
from adaptrix.errors import UnreachableError
from adaptrix.pipeline import Pipeline

PIRATE = Path(__file__).parents[2] / "examples" / "tiny" / "adapters" / "pirate"


@pytest.fixture
def asked(monkeypatch):
    """The bases that a source is asked for; none can be reached."""
    names = []

    def base_config(self, base):
        names.append(base)
        raise UnreachableError(adaptrix.Problem("hub-offline", base, "offline"))

    monkeypatch.setattr(Pipeline, "base_config", base_config)
    return names


def checked(folder, base):
    shutil.copytree(PIRATE, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return adaptrix.check(folder)


PATHS = [
    *("./base", "../base", "/data/models/llama", "~/llama", "..\\x", "C:\\models\\llama", "C:/models/llama", "base/"),
    *("models/llama/final", "out/checkpoint-500", "checkpoint-500", "hf://owner/name", "https://huggingface.co/a/b"),
    *("owner/name@main", "file:///x", "a--b/c", "a..b"),
]


@pytest.mark.parametrize("base", PATHS)
def test_a_path_of_another_machine_is_not_asked_of_the_hub(base, asked, tmp_path):
    report = checked(tmp_path / "lora", base)
    assert (asked, report.ok) == ([], True)
    (said,) = [problem for problem in report.problems if problem.code == "base-unusable"]
    assert (said.where, said.severity) == (base, "note")
    assert "the machine where the adapter was trained" in said.found


@pytest.mark.parametrize("base", ["gpt2", "meta-llama/Llama-2-7b-hf", "owner/name.v1_2"])
def test_a_repository_is(base, asked, tmp_path):
    assert checked(tmp_path / "lora", base).ok
    assert asked == [base]


def test_a_folder_that_is_there_is_read(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/llama/final").mkdir(parents=True)
    checked(tmp_path / "lora", "models/llama/final")
    assert asked == ["models/llama/final"]
