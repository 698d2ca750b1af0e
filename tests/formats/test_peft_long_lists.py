"""Lists in a PEFT config as long as a stranger likes: the time grows with their length, or they are refused."""

import gc
import json
import shutil
from pathlib import Path
from time import process_time

import pytest

import adaptrix
from adaptrix.architecture.patterns import Budget, Patterns

PIRATE = Path(__file__).parents[2] / "examples" / "tiny" / "adapters" / "pirate"

LISTS = {
    "trainable_token_indices": lambda n: {f"e{i}": [1] for i in range(n)},
    "one list of trainable_token_indices": lambda n: list(range(n)),
    "target_parameters": lambda n: [f"m{i}.experts.gate_up_proj" for i in range(n)],
    "bare target_parameters": lambda n: [f"p{i}" for i in range(n)],
    "target_modules": lambda n: ["q_proj", "v_proj", *(f"m{i}" for i in range(n))],
    "exclude_modules": lambda n: [f"m{i}" for i in range(n)],
    "modules_to_save": lambda n: [f"m{i}" for i in range(n)],
    "rank_pattern": lambda n: {f"m{i}": 4 for i in range(n)},
    "bad rank_pattern": lambda n: {f"m{i}": "four" for i in range(n)},
    "alpha_pattern": lambda n: {f"m{i}.q_proj": 4 for i in range(n)},
    "layers_to_transform": lambda n: list(range(n)),
    "layers_pattern": lambda n: [f"l{i}" for i in range(n)],
    "layer_replication": lambda n: [[i, i + 1] for i in range(n)],
    "enable_lora": lambda n: [True] * n,
    "megatron_config": lambda n: {f"m{i}": [i] for i in range(n)},
    "alora_invocation_tokens": lambda n: list(range(n)),
}


def checked(folder: Path, key: str, count: int) -> tuple[float, adaptrix.CheckReport]:
    """The processor time and the report of a check of an adapter whose config has ``count`` entries in a list."""
    config = json.loads((PIRATE / "adapter_config.json").read_text())
    config[key.rpartition(" ")[2]] = LISTS[key](count)
    if key == "layers_pattern":
        config["layers_to_transform"] = [0, 1]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    gc.disable()  # a collection of all that other tests have left takes longer than what is measured
    try:
        began = process_time()
        report = adaptrix.check(folder)
        return process_time() - began, report
    finally:
        gc.enable()


@pytest.mark.parametrize("key", LISTS)
def test_four_times_the_entries_take_about_four_times_as_long(key, tmp_path):
    shutil.copy(PIRATE / "adapter_model.safetensors", tmp_path)
    short, _ = checked(tmp_path, key, 4_000)
    long, report = checked(tmp_path, key, 16_000)
    assert long < 8 * max(short, 0.03)  # 16 times as long, were each compared with each
    assert len(report.problems) <= 250


@pytest.mark.parametrize(
    ("key", "count"), [("target_parameters", 100_001), ("layers_pattern", 101), ("enable_lora", 65), ("other", 100_001)]
)
def test_more_than_any_model_has_use_for_is_refused(key, count, tmp_path, monkeypatch):
    monkeypatch.setitem(LISTS, "other", LISTS["megatron_config"])
    shutil.copy(PIRATE / "adapter_model.safetensors", tmp_path)
    _, report = checked(tmp_path, key, count)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    assert [problem.code for problem in errors if problem.where.endswith(key)] == ["config-value"]
    assert f"{count} entries" in str(errors)


def test_a_pattern_that_never_ends_is_refused_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setitem(LISTS, "target_modules", lambda n: "(" + "(a|.)*" * n + ")*$")
    shutil.copy(PIRATE / "adapter_model.safetensors", tmp_path)
    time, report = checked(tmp_path, "target_modules", 10)
    assert time < 20
    assert not report.ok


@pytest.mark.parametrize(("key", "value"), [("bias", "z" * 10**6), ("r", 10**4000), ("target_modules", ["q" * 10**6])])
def test_a_message_is_short_however_long_the_value(key, value, tmp_path, monkeypatch):
    monkeypatch.setitem(LISTS, key, lambda n: value)
    shutil.copy(PIRATE / "adapter_model.safetensors", tmp_path)
    _, report = checked(tmp_path, key, 1)
    assert report.problems
    assert max(len(str(problem)) for problem in report.problems) < 1000


def test_the_time_of_all_patterns_together_is_bounded():
    left = Budget(0.05)
    with pytest.raises(adaptrix.RefusedError, match="takes seconds"):
        Patterns([f".*(a|b)+{i}$" for i in range(2000)], "rank_pattern", left).first("model.layers.0.q_proj")
    assert left.seconds > -3
