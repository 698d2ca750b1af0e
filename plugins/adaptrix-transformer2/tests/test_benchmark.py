"""The benchmark: what it measures on is new, its figures are counted rightly, and its quick run goes through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.transformer2.lora import Lora
from benchmarks.transformer2.plan import FULL, RANK
from benchmarks.transformer2.report import interval
from benchmarks.transformer2.tasks import asked, learning, measuring, name_of, reward, tasks_of
from benchmarks.world.base import blank
from benchmarks.world.descriptions import SEEN, UNSEEN, describe

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_measured_that_was_learnt(seed: int) -> None:
    tasks = tasks_of(seed)
    assert len(set(tasks.own.values()) | set(tasks.unseen.values())) == len(tasks.own) + len(tasks.unseen) == 12
    for task in (*tasks.own.values(), *tasks.unseen.values()):
        known, held = learning(tasks, [task], FULL.examples, FULL.held, Random(seed))
        told = measuring(tasks, task, FULL, seed)
        assert len(told) == 2 * FULL.measured
        sets = [{one.prompt[-5:-1] for one in some} for some in (known, held, told)]
        assert not sets[0] & sets[1]
        assert not (sets[0] | sets[1]) & sets[2]
        assert not {describe(task, way) for way in SEEN} & {describe(task, way) for way in UNSEEN}
        assert all(reward(one, one.response) == 1 for one in told)
    unread = list(tasks.unseen.values())[:4]
    assert not set(unread) & set(tasks.library)
    assert [name_of(tasks, task) for task in unread] == ["other"] * 4
    assert len(set(asked(tasks).names.values())) == 7


def test_an_expert_has_at_most_a_tenth_of_a_loras_numbers() -> None:
    model = blank()
    paths = [name for name, _ in model.named_modules() if name.endswith(("gate_proj", "up_proj", "down_proj"))]
    numbers = sum(min(model.get_submodule(path).weight.shape) for path in paths)
    assert numbers == 384 <= Lora(model, paths, RANK, 0).numbers / 10


def test_intervals_are_students() -> None:
    mean, half = interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert mean == pytest.approx(0.3)
    assert half == pytest.approx(2.776 * 0.158114 / 5**0.5, rel=1e-3)
    assert interval([0.25]) == (0.25, 0.0)


@pytest.mark.slow
def test_the_quick_run_goes_through(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "benchmarks/transformer2/run.py"), "--quick"]
    folders = ["--results", str(tmp_path / "results"), "--world", str(tmp_path / "world")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*line, *folders], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "| CEM, a matrix |" in done.stdout
    told = json.loads((tmp_path / "results" / "results.json").read_text())
    assert told["numbers"]["svf"] == 384
    differences = told["means"].pop("differences, seed by seed")
    assert all(0 <= value <= 1 for rows in told["means"].values() for each in rows.values() for value in each)
    unseen = {way: value for way, (value,) in told["means"]["unseen tasks"].items()}
    assert differences["CEM, a matrix − base, unseen"] == [unseen["CEM, a matrix"] - unseen["base"]]
    one = told["seeds"][0]
    assert set(one["wrong"]) == {f"{way} {name}" for way in ("prompt", "classifier") for name in one["tasks"]}
    assert (
        told["means"]["stream of the experts' tasks"]["each task's own expert"]
        == (told["means"]["own task"]["SVF, answers"])
    )
    assert (tmp_path / "results" / "results.svg").stat().st_size > 1000
