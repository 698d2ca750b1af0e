"""SIGKILL at random moments: the output of each command is the old one, the new one, or absent, and never a part.

    nice -n 19 python benchmarks/kills.py [NAME ...] [--count 40] [--seed 0]

Each command replaces a folder or a file with ``--force``, and is killed once: every other time after a random part of
the time that it takes, else at a random moment between its first write and its end. One kill in four is followed by
the same command, which has to come to the new output. Prints, for each command, how often the old and the new output
were there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny"
LORAS = [str(TINY / "adapters" / name) for name in ("pirate", "telegram")]
BASE = str(TINY / "base")
#: what is trained on; it has the keys of every training
LINES = [("The old sailor", " walked home."), ("A fox", " slept."), ("At noon", " it rained."), ("Tom", " sat.")]
#: the files beside or in an output that a training goes on from
STATES = ("training.safetensors",)

EXPERT = {"base": BASE, "examples": "lines.jsonl", "layers": "6-7", "steps": 4, "every": 1, "batch": 2, "name": "it"}
SIZES = {"width": 16, "latent": 8, "head": 8, "rank": 2, "batch": 2, "steps": 4, "save_every": 1}
HYPERNETWORK = {"base": BASE, "tasks": "lines.jsonl", "encoder": "hashed", **SIZES}
#: the arguments but for the output, of which each command has two: of an old output and of the new one
COMMANDS = {
    "convert": (["convert", LORAS[1], "--base", BASE], ["convert", LORAS[0], "--base", BASE]),
    "convert --to peft": (
        ["convert", LORAS[1], "--base", BASE, "--to", "peft"],
        ["convert", LORAS[0], "--base", BASE, "--to", "peft"],
    ),
    "combine": (["combine", *LORAS, "--weights", "1,0.5"], ["combine", *LORAS, "--weights", "0.5,1"]),
    "merge": (["merge", LORAS[1], "--base", BASE], ["merge", LORAS[0], "--base", BASE]),
    "generate": (
        ["generate", "talk like a pirate", "--base", BASE],
        ["generate", "write a telegram", "--base", BASE],
    ),
    "convert --layers fit:2": (
        ["convert", LORAS[1], "--base", BASE],
        ["convert", LORAS[0], "--base", BASE, "--layers", "fit:2", "--text", "text.txt", "--steps", "4"],
    ),
    "text-to-lora train": (["text-to-lora", "train", "t2l-1.yaml"], ["text-to-lora", "train", "t2l-0.yaml"]),
    "transformer2 train": (["transformer2", "train", "expert-1.yaml"], ["transformer2", "train", "expert-0.yaml"]),
}


def write_inputs(folder: Path, out: Path) -> None:
    """The files that trainings read; an expert's output is named in its config."""
    lines = ({"task": a, "description": [a], "prompt": a, "response": b} for a, b in LINES)
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.txt").write_text(" ".join(a + b for a, b in LINES) * 40)
    for seed in (0, 1):
        (folder / f"t2l-{seed}.yaml").write_text(yaml.safe_dump(HYPERNETWORK | {"alpha": 16.0 + seed}))
        (folder / f"expert-{seed}.yaml").write_text(
            yaml.safe_dump(EXPERT | {"rate": 0.01 + 0.01 * seed, "out": str(out)})
        )


def command(args: list[str], out: Path) -> list[str]:
    named = [] if args[0] == "transformer2" else ["-o", str(out)]
    return [sys.executable, "-m", "adaptrix", *args, *named, "--force", "-q"]


def state(path: Path) -> str:
    """The digest of a file or of all files of a folder; "absent" where there is neither."""
    if not path.exists():
        return "absent"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and (files := [file for file in files if file.name not in STATES]) == []:
        return "absent"
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def names(folder: Path) -> set[str]:
    """The files in a folder, and those in the folders in it."""
    return {str(path) for depth in ("*", "*/*") for path in folder.glob(depth)}


class Run:
    """A command at work: its process, and when it first wrote into a folder, in seconds."""

    def __init__(self, args: list[str], inputs: Path, folder: Path) -> None:
        self._began, self._folder, self._before = time.monotonic(), folder, names(folder)
        self.process = subprocess.Popen(args, cwd=inputs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def until_written(self) -> float:
        """Waits for the first write, or the end."""
        while self.process.poll() is None and names(self._folder) == self._before:
            time.sleep(0.002)
        return self.seconds

    def until_done(self) -> float:
        said = self.process.communicate()[1]
        if self.process.returncode:
            sys.exit(said.decode())
        return self.seconds


def killed(old: list[str], new: list[str], count: int, rng: random.Random, inputs: Path, folder: Path) -> Counter[str]:
    """What is left after each of ``count`` kills."""
    out, kept, ends = folder / "out", inputs / "kept", Counter[str]()
    write_inputs(inputs, out)
    reference = Run(command(new, out), inputs, folder)
    first, takes = reference.until_written(), reference.until_done()
    states = {state(out): "new"}
    Run(command(old, out), inputs, folder).until_done()
    states |= {state(out): "old", "absent": "absent"}
    out.rename(kept)
    for at in range(count):
        for rest in folder.iterdir():
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, out)
        run = Run(command(new, out), inputs, folder)
        if at % 2:
            run.until_written()
            time.sleep((takes - first) * rng.uniform(0, 1.05))
        else:
            time.sleep(takes * rng.uniform(0.5, 1.05))
        run.process.kill()
        run.process.communicate()
        ends[states.get(state(out), "PART")] += 1
        if at % 4 == 1:
            Run(command(new, out), inputs, folder).until_done()
            ends["then new" if states.get(state(out)) == "new" else "then PART"] += 1
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)}; all by default")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    parts = 0
    for name in options.names or COMMANDS:
        with tempfile.TemporaryDirectory() as inputs, tempfile.TemporaryDirectory() as folder:
            rng = random.Random(options.seed)
            ends = killed(*COMMANDS[name], options.count, rng, Path(inputs), Path(folder))
        print(f"{name}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}", flush=True)
        parts += ends["PART"] + ends["then PART"] + ends["absent"]
    return bool(parts)


if __name__ == "__main__":
    sys.exit(main())
