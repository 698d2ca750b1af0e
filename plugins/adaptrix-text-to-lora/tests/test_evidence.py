"""The benchmark of the evidence, quickly: its laws, not its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_quick_run_keeps_its_laws_and_is_not_run_again(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "text_to_lora" / "run.py", "--quick"]
    command += ["--results", tmp_path / "results", "--world", tmp_path / "world"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").iterdir()
    found = json.loads(file.read_text())
    for name, each in found.items():
        if name != "seconds":
            assert each["oracle"] > 0.3 > 0.05 > each["base"]
            assert each["oracle"] > each["multi-task LoRA"]
    known = found["unseen descriptions"]
    for control in ("mismatched", "random", "shuffled"):
        assert known["T2L, fine-tuned"] > 2 * known[control]
    assert known["nearest LoRA"] > 2 * known["mean ΔW"]
    before = file.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "T2L, fine-tuned" in again.stdout
    assert file.stat().st_mtime_ns == before
