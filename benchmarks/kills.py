"""SIGKILL at random moments: the output of each command is the old one, the new one, or absent, and never a part.

    nice -n 19 python benchmarks/kills.py [--count 40] [--seed 0]

Each command replaces a folder or a file with ``--force``, and is killed once after a random part of the time that it
takes. Prints, for each command, how often the old and the new output were there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny"
LORAS = [str(TINY / "adapters" / name) for name in ("pirate", "telegram")]
BASE = str(TINY / "base")

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
}


def command(args: list[str], out: Path) -> list[str]:
    return [sys.executable, "-m", "adaptrix", *args, "-o", str(out), "--force", "-q"]


def state(path: Path) -> str:
    """The digest of a file or of all files of a folder; "absent" where there is neither."""
    if not path.exists():
        return "absent"
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def killed(old: list[str], new: list[str], count: int, rng: random.Random, folder: Path) -> Counter[str]:
    """What is left after each of ``count`` kills."""
    out, kept, ends = folder / "out", folder / "kept", Counter[str]()
    began = time.monotonic()
    subprocess.run(command(new, out), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    takes, states = time.monotonic() - began, {state(out): "new"}
    subprocess.run(command(old, out), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    states |= {state(out): "old", "absent": "absent"}
    out.rename(kept)
    for _ in range(count):
        (shutil.copytree if kept.is_dir() else shutil.copy)(kept, out)
        process = subprocess.Popen(command(new, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(takes * rng.uniform(0.5, 1.05))
        process.kill()
        process.wait()
        ends[states.get(state(out), "PART")] += 1
        for rest in folder.iterdir():
            if rest != kept:
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    parts = 0
    for name, (old, new) in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            ends = killed(old, new, options.count, random.Random(options.seed), Path(folder))
        print(f"{name}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}", flush=True)
        parts += ends["PART"] + ends["absent"]
    return bool(parts)


if __name__ == "__main__":
    sys.exit(main())
