"""Comparison of a runtime's logits with peft's, in the runtime's own venv: numpy alone is imported here.

    python tests/runtimes/judge.py mlx FOLDER

A case passes where the adapted logits are as near to peft's as the base's are to transformers', and both are near.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

#: the largest difference that is called rounding, as a share of the largest logit
_ROUNDING = 1e-5


def main(runtime: str, folder: Path) -> int:
    """The number of cases that failed."""
    run = importlib.import_module(f"{runtime}_runtime").run
    passed = failed = 0
    for home in sorted(folder.glob("*-*")):
        adapter = next(iter(home.glob(f"{'gguf.gguf' if runtime == 'llamacpp' else runtime}")), None)
        if adapter is None:
            continue
        reference = np.load(home / "reference.npz")
        base, adapted = run(folder / home.name.rpartition("-")[0], adapter, reference["ids"])
        unit = np.abs(reference["adapted"]).max()
        errors = [np.abs(got - reference[name]).max() / unit for name, got in (("base", base), ("adapted", adapted))]
        effect = np.abs(reference["adapted"] - reference["base"]).max() / unit
        good = errors[1] <= max(_ROUNDING, 3 * errors[0]) and errors[0] <= 0.01 * effect
        said = "" if good else " FAILED"
        print(f"{home.name}: base {errors[0]:.1e}, adapted {errors[1]:.1e}, effect {effect:.1e}{said}")
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return failed + (not passed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(min(main(sys.argv[1], Path(sys.argv[2])), 1))
