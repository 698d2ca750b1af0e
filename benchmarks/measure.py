"""Times whole processes in turn, so that a machine whose speed drifts still gives fair ratios."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """Wall seconds and peak resident megabytes of one process."""

    seconds: float
    megabytes: float


def once(command: Sequence[str], env: Mapping[str, str] | None = None) -> Run:
    """Runs a command to its end; a failing one ends the benchmark with its output."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{said.decode()}")
    return Run(seconds, usage.ru_maxrss / 1000)


def in_turn(
    commands: Mapping[str, Sequence[str]],
    runs: int,
    env: Mapping[str, str] | None = None,
    outputs: Sequence[Path] = (),
) -> dict[str, list[Run]]:
    """Every command once to warm up, then all of them in turn, ``runs`` times.

    ``outputs`` are removed before each command: to write over a large file costs more than to write one.
    """
    results: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            for path in outputs:
                path.unlink(missing_ok=True)
            run = once(command, env)
            if turn:
                results[name].append(run)
    return results


def ratio(top: Sequence[Run], bottom: Sequence[Run]) -> float:
    """The median of the ratios of wall time, pair by pair."""
    return median(a.seconds / b.seconds for a, b in zip(top, bottom, strict=True))


def milliseconds(runs: Sequence[Run]) -> float:
    return 1000 * median(run.seconds for run in runs)


def bare_python(folder: Path) -> Path:
    """The python of a venv with the wheel of this checkout in it and no extras."""
    subprocess.run([sys.executable, "-m", "build", "-q", "--wheel", "--outdir", folder / "dist", ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    wheel = next((folder / "dist").glob("*.whl"))
    # safetensors is no dependency of adaptrix: it is in the goal that convert is measured against
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, "safetensors"]
    subprocess.run(pip, check=True)
    return python
