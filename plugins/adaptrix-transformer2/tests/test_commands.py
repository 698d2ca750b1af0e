"""``adaptrix transformer2``: from a config and a file of examples to an expert, and what is said of bad ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from adaptrix_transformer2.config import read_config
from adaptrix_transformer2.texts import REWARDS, read_examples, reward_on_text
from adaptrix_transformer2.train import Example, Policy, TrainingSettings
from transformers import AutoTokenizer

import adaptrix
from adaptrix.cli import run
from adaptrix.testing import PluginLaws
from tests.helpers.json_documents import document

BASE = Path(__file__).parents[3] / "examples" / "tiny" / "base"
LINES = [("The old sailor", " walked home."), ("A fox", " slept."), ("At noon", " it rained."), ("Tom", " sat.")]


class TestPlugin(PluginLaws):
    distribution = "adaptrix-transformer2"
    contributes: ClassVar = {"commands": ["transformer2"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"prompt": prompt, "response": response, "more": 1}) for prompt, response in LINES]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def config(folder: Path, **options: Any) -> str:
    told = {"base": str(BASE), "examples": "data.jsonl", "validation": "data.jsonl", "name": "tales"}
    told |= {"steps": 3, "every": 2, "batch": 2, "layers": "6-7", "rate": "2e-2", **options}
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    return "config.yaml"


def test_train_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["transformer2", "train", config(folder, history="figures.json"), "--json"]) == 0
    told = document(capsys.readouterr().out, 0)
    assert told["path"] == "tales.adaptrix.safetensors"
    assert told["numbers"] == 6 * 128
    assert (told["adapter"]["name"], told["adapter"]["deltas"]) == ("tales", 6)
    assert told["score"] > told["started"]
    figures = json.loads((folder / "figures.json").read_text())
    assert [set(one) for one in figures] == [
        {"loss", "gradient"},
        {"loss", "gradient", "score"},
        {"loss", "gradient", "score"},
    ]
    made = adaptrix.load(told["path"])
    assert made.base == str(BASE)
    assert {target.path.split(".")[2] for target in made.deltas} == {"6", "7"}
    assert sorted(path.name for path in folder.iterdir() if path.name != "cache") == [
        *("config.yaml", "data.jsonl", "figures.json", "tales.adaptrix.safetensors")
    ]
    line = ["transformer2", "evaluate", told["path"], "--base", str(BASE), "--examples", "data.jsonl"]
    assert run([*line, "--longest", "4", "--json"]) == 0
    rows = document(capsys.readouterr().out, 0)["rows"]
    assert [row["name"] for row in rows] == ["base", "tales.adaptrix.safetensors"]
    assert rows[1]["loss"] == pytest.approx(-told["score"], abs=1e-5)
    assert rows[1]["loss"] < rows[0]["loss"]
    assert run(["transformer2", "train", "config.yaml"]) == 2, "the output is there already"


@pytest.mark.parametrize("method", ["sft", "reinforce"])
def test_a_training_that_is_stopped_while_it_writes_goes_on_from_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    answer = {"method": method, "reward": "contains", "longest": 2, "patience": 9} if method == "reinforce" else {}
    path, state = folder / "tales.adaptrix.safetensors", folder / "tales.adaptrix.safetensors.training"
    line = ["transformer2", "train", config(folder, **answer)]
    with monkeypatch.context() as patched:
        patched.setattr("adaptrix_transformer2.experts.save", stopped)
        assert run(line) == 130
    assert state.exists()
    assert not path.exists()
    monkeypatch.setattr("adaptrix_transformer2.train.run.Run._step", stopped)
    assert run(line) == 0, capsys.readouterr().err
    assert path.exists()
    assert not state.exists()


def test_rewards_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = {"method": "reinforce", "reward": "contains", "longest": 2, "patience": 2}
    assert run(["transformer2", "train", config(folder, **told)]) == 1
    assert "every answer of 2 steps was worth 0" in capsys.readouterr().err
    assert not list(folder.glob("tales*")), "a state would only be refused again"
    assert run(["transformer2", "train", config(folder, **told, steps=1)]) == 0
    assert "the rewards of 1 of 1 steps were all equal" in capsys.readouterr().err


def test_a_config_is_read_whole(folder: Path) -> None:
    found = read_config(Path(config(folder, method="faithful", layers="1,4-6", kl="1e-1", steps=7, chat=True)))
    assert found.settings == TrainingSettings.published(steps=7, every=2, batch=2, rate=0.02)
    assert found.policy == Policy.published(kl=0.1)
    assert found.layers == (1, 4, 5, 6)
    assert found.chat
    assert read_config(Path(config(folder, layers=3))).layers == (3,)
    plain = read_config(Path(config(folder, layers="all")))
    assert plain.layers is None
    assert plain.policy is None


def test_every_problem_of_a_config_is_told(folder: Path) -> None:
    odd = {"metod": "sft", "rate": -1, "clip": "much", "reward": "nice", "layers": "4-", "device": 3, "chat": "yes"}
    with pytest.raises(adaptrix.UsageError) as error:
        read_config(Path(config(folder, **odd)))
    found = [problem.where.removeprefix("config.yaml ") for problem in error.value.problems]
    assert found == ["metod", "device", "reward", "chat", "reward", "layers", "rate", "clip"]
    for text in ("- 1", "a: [", "!!python/object/apply:os.mkdir [ran]", "", "base: x\nbase: y", "1: 2"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(adaptrix.RefusedError):
            read_config(folder / "config.yaml")
    assert not (folder / "ran").exists()
    for key, value in (("reward", ["exact"]), ("layers", "9-4"), ("name", 7)):
        with pytest.raises(adaptrix.UsageError, match=key):
            read_config(Path(config(folder, **{"method": "reinforce", key: value})))


def test_every_bad_line_is_told(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n[1]\n{"prompt": "a", "response": "b"}\n{"prompt": ""\n')
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    with pytest.raises(adaptrix.RefusedError) as error:
        read_examples(Path("bad.jsonl"), tokenizer)
    assert [problem.where for problem in error.value.problems] == [f"bad.jsonl line {at}" for at in (1, 2, 4)]
    with pytest.raises(adaptrix.RefusedError, match="no chat template"):
        read_examples(Path("data.jsonl"), tokenizer, chat=True)


def test_prompts_begin_as_the_tokenizer_begins(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    found = read_examples(Path("data.jsonl"), tokenizer)
    assert [tokenizer.decode(one.response) for one in found] == [response for _, response in LINES]
    assert {one.prompt[0] for one in found} == {tokenizer.bos_token_id}
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    turned = read_examples(Path("data.jsonl"), tokenizer, chat=True)
    assert tokenizer.decode(turned[1].prompt) == "<A fox>!"


@pytest.mark.parametrize(
    ("name", "answer", "wanted", "right"),
    [
        ("exact", " walked home.", "walked home. ", True),
        ("exact", " walked home. Then", " walked home.", False),
        ("contains", "he walked home. Then", " walked home.", True),
        ("contains", "he walked", "walked home", False),
        ("number", "It is 12, so 1,234.50 in all", "#### 1234.5", True),
        ("number", "It is 12", "7 and 13", False),
        ("number", "none", "13", False),
    ],
)
def test_rewards(name: str, answer: str, wanted: str, right: bool) -> None:
    assert REWARDS[name](answer, wanted) is right
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    told = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (answer, wanted)]
    assert reward_on_text(name, tokenizer)(Example((0,), told[1]), told[0]) == float(right)


@pytest.mark.slow
def test_an_interrupted_training_goes_on(folder: Path) -> None:
    """Ctrl-C ends a training without a traceback, and the same command gives the bytes of one that was let alone."""
    line = [sys.executable, "-m", "adaptrix", "transformer2", "train", config(folder, steps=40, every=1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    state = folder / "tales.adaptrix.safetensors.training"
    while not state.exists() and begun.poll() is None:
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    said = begun.communicate(timeout=60)[1]
    assert begun.returncode == 130, said
    assert "of 40 steps: the same command goes on from there" in said
    assert "Traceback" not in said
    assert state.exists()
    subprocess.run(line, env=environment, check=True, capture_output=True)
    assert not state.exists()
    first = (folder / "tales.adaptrix.safetensors").read_bytes()
    subprocess.run([*line, "--force"], env=environment, check=True, capture_output=True)
    assert (folder / "tales.adaptrix.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"out": "data.jsonl"}, "this is the source itself"),
        ({"history": "data.jsonl"}, "this is the source itself"),
        ({"history": "config.yaml"}, "this is the source itself"),
        ({"out": "one", "history": "./one"}, "the expert goes there"),
    ],
)
def test_no_output_takes_the_place_of_a_source_or_of_another(
    folder: Path, capsys: pytest.CaptureFixture[str], where: dict[str, str], said: str
) -> None:
    before = (folder / "data.jsonl").read_bytes()
    assert run(["transformer2", "train", config(folder, **where), "--force"]) == 2
    assert said in capsys.readouterr().err
    assert (folder / "data.jsonl").read_bytes() == before
    assert not (folder / "one").exists()


def test_a_line_may_hold_what_ends_lines_elsewhere_and_no_half_characters(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    (folder / "odd.jsonl").write_text('{"prompt": "a\u2028b\x85c", "response": "d"}\r\n')
    assert len(read_examples(folder / "odd.jsonl", tokenizer)) == 1
    (folder / "half.jsonl").write_text(r'{"prompt": "\ud800", "response": "d"}')
    with pytest.raises(adaptrix.RefusedError, match="line 1"):
        read_examples(folder / "half.jsonl", tokenizer)
