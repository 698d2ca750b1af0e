"""Speed and memory of the converter as whole processes, beside what they are measured against.

    python benchmarks/convert.py [--runs 7] [--skip-peft]

Prints a table in Markdown. All processes run offline with a hub cache of their own; adaptrix runs from its
wheel in a bare venv, peft from the venv that runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import ROOT, Run, bare_python, in_turn, milliseconds, ratio

IMPORTS = "import numpy, safetensors, click"
PEFT = """
import sys, torch, peft
from transformers import LlamaConfig, LlamaForCausalLM
source, target = sys.argv[1:]
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig())  # the defaults are those of Llama 7B
# peft moves an adapter to its base's device; on this one it would lose the numbers
peft.tuners.lora.LoraLayer._move_adapter_to_device_of_base_layer = lambda *args, **options: None
model = peft.PeftModel.from_pretrained(model, source, low_cpu_mem_usage=True)
model.save_pretrained(target)
"""

IN_PROCESS = """
import json, os, sys, time
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import adaptrix
def once(source):
    start = time.perf_counter()
    adaptrix.convert(source, sys.argv[1], force=True)
    return time.perf_counter() - start
print(json.dumps([min(once(source) for _ in range(5)) for source in sys.argv[2:]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--skip-peft", action="store_true", help="leave out the slow comparison")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
        python = bare_python(folder)
        print("| what | measured | goal |\n| --- | --- | --- |")
        convert_against_copy(folder, python, env, options.runs)
        if not options.skip_peft:
            convert_against_peft(folder, python, env, max(2, options.runs // 3))
        help_against_click(python, env, options.runs)
        cost_per_tensor(folder, python, env)


def adapter(folder: Path, *args: str) -> Path:
    """A checkpoint of alpaca-lora-7b's form, of a size of its own."""
    target = folder / ("alpaca" + "".join(args))
    if not target.exists():
        in_turn({"make": [sys.executable, str(ROOT / "benchmarks" / "alpaca.py"), str(target), *args]}, 0)
    return target


def convert(python: Path, source: Path, out: Path) -> list[str]:
    return [str(python.parent / "adaptrix"), "convert", str(source), "-o", str(out), "--force", "-q"]


def convert_against_copy(folder: Path, python: Path, env: dict[str, str], runs: int) -> None:
    source = adapter(folder)
    out = folder / "out.adaptrix.safetensors"
    weights, copy = source / "adapter_model.bin", folder / "copy.bin"
    results = in_turn(
        {
            "convert": convert(python, source, out),
            "import": [str(python), "-c", IMPORTS],
            "cp": ["cp", str(weights), str(copy)],
        },
        runs,
        env,
        [out, copy],
    )
    floor = [Run(i.seconds + c.seconds, 0) for i, c in zip(results["import"], results["cp"], strict=True)]
    times = {name: f"{milliseconds(found):.0f} ms" for name, found in results.items()}
    row(
        f"convert, 256 tensors, 67 MB ({times['convert']}) against importing numpy, safetensors and click "
        f"({times['import']}) and cp ({times['cp']})",
        f"{ratio(results['convert'], floor):.2f} ×",
        "≤ 2.5 ×",
    )
    row("peak memory of the same", f"{max(run.megabytes for run in results['convert']):.0f} MB", "≤ 150 MB")


def convert_against_peft(folder: Path, python: Path, env: dict[str, str], runs: int) -> None:
    source = adapter(folder)
    target = folder / "peft"
    results = in_turn(
        {
            "peft": [sys.executable, "-W", "ignore", "-c", PEFT, str(source), str(target)],
            "convert": convert(python, source, folder / "out.adaptrix.safetensors"),
        },
        runs,
        env,
    )
    shutil.rmtree(target)
    times = f"peft on a meta model, load and save ({milliseconds(results['peft']) / 1000:.1f} s)"
    row(f"{times} against convert", f"{ratio(results['peft'], results['convert']):.1f} ×", "≥ 10 ×")


def help_against_click(python: Path, env: dict[str, str], runs: int) -> None:
    results = in_turn(
        {"help": [str(python.parent / "adaptrix"), "--help"], "click": [str(python), "-c", "import click"]}, runs, env
    )
    times = f'`adaptrix --help` ({milliseconds(results["help"]):.0f} ms) against `python -c "import click"`'
    row(times, f"{ratio(results['help'], results['click']):.2f} ×", "≤ 2 ×")


def cost_per_tensor(folder: Path, python: Path, env: dict[str, str]) -> None:
    """What a tensor adds to a conversion inside one process, at equal width, the best of five."""
    counts = (8, 256, 1024, 4096)
    sources = [str(adapter(folder, "--layers", str(count // 8), "--hidden", "256")) for count in counts]
    command = [str(python), "-c", IN_PROCESS, str(folder / "out.adaptrix.safetensors"), *sources]
    seconds = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    few, *rest = zip(counts, seconds, strict=True)
    costs = [1e6 * (time - few[1]) / (count - few[0]) for count, time in rest]
    told = ", ".join(f"{cost:.0f} µs at {count:,}" for cost, (count, _) in zip(costs, rest, strict=True))
    row(f"cost a tensor: {told}", f"{costs[-1] / costs[0]:.2f} ×", "flat (1 ×)")


def row(what: str, measured: str, goal: str) -> None:
    print(f"| {what} | {measured} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
