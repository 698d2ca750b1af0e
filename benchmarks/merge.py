"""Speed and memory of a merge beside cp of the base, and beside loading, merging and saving with peft.

    python benchmarks/merge.py [--runs 7] [--skip-peft]

Prints a table in Markdown. The base is a Llama of random bf16 numbers, the adapter changes every linear layer. What
is measured against cp is the merge itself, inside a process that has torch loaded already, cp and merge in turn;
that against peft is whole processes in turn. Extra memory is anonymous: what is mapped from files does not count.
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
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import Run, milliseconds, once, ratio

MAKE = """
import sys, torch, peft
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, vocab_size=16000)
heads = dict(num_attention_heads=16, num_key_value_heads=8)
model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16)
model.save_pretrained(sys.argv[1], max_shard_size="100MB")
config = peft.LoraConfig(r=16, lora_alpha=32, init_lora_weights=False, target_modules="all-linear")
peft.get_peft_model(model, config).save_pretrained(sys.argv[2])
"""
PEFT = """
import sys, torch, peft
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(out, max_shard_size="100MB")
"""
IN_PROCESS = """
import json, shutil, subprocess, sys, threading, time
import adaptrix, adaptrix.merging.shards
base, adapter, copy, out, runs = sys.argv[1:]
def anonymous():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1]) / 1000
def timed(act, target):
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
def watch():
    while watching:
        peaks[-1] = max(peaks[-1], anonymous())
        time.sleep(0.001)
acts = [(lambda: subprocess.run(["cp", "-r", base, copy], check=True), copy)]
acts += [(lambda: adaptrix.merge(adapter, base, out), out)]
times, before, peaks, watching = [], anonymous(), [0.0], True
thread = threading.Thread(target=watch)
thread.start()
acts[1][0]()  # the first one loads what is left to be loaded
peak, watching = peaks[0], False
thread.join()
for _ in range(int(runs)):
    times.append([timed(*act) for act in acts])
print(json.dumps({"times": times, "extra": peak - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--skip-peft", action="store_true", help="leave out the slow comparison")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapter = folder / "base", folder / "adapter"
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
        once([sys.executable, "-W", "ignore", "-c", MAKE, str(base), str(adapter)], env)
        print("| what | measured | goal |\n| --- | --- | --- |")
        against_copy(base, adapter, folder, env, options.runs)
        if not options.skip_peft:
            against_peft(base, adapter, folder, env, max(2, options.runs // 2))


def against_copy(base: Path, adapter: Path, folder: Path, env: dict[str, str], runs: int) -> None:
    command = [sys.executable, "-c", IN_PROCESS, base, adapter, folder / "copy", folder / "out", str(runs)]
    found = json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 1e6
    copy, merge = (1000 * median(times[which] for times in found["times"]) for which in (0, 1))
    quotient = median(times[1] / times[0] for times in found["times"])
    row(f"merge of {size:.0f} MB ({merge:.0f} ms) against cp of the base ({copy:.0f} ms)", f"{quotient:.2f} ×", "≤ 2 ×")
    largest = 16000 * 1024 * 2 / 1e6
    row(
        f"its extra anonymous memory ({found['extra']:.0f} MB) against the largest tensor ({largest:.0f} MB)",
        f"{found['extra'] / largest:.2f} ×",
        "≤ 3 ×",
    )


def against_peft(base: Path, adapter: Path, folder: Path, env: dict[str, str], runs: int) -> None:
    out = folder / "merged"
    program = Path(sys.executable).with_name("adaptrix")
    commands = {
        "peft": [sys.executable, "-W", "ignore", "-c", PEFT, str(base), str(adapter), str(out)],
        "merge": [str(program), "merge", str(adapter), "--base", str(base), "-o", str(out), "-q"],
    }
    results: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(runs + 1):  # the first warms the disk's cache
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            run = once(command, env)
            if turn:
                results[name].append(run)
    times = {name: f"{milliseconds(found) / 1000:.1f} s" for name, found in results.items()}
    quotient = ratio(results["peft"], results["merge"])
    row(f"peft, load, merge and save ({times['peft']}) against merge ({times['merge']})", f"{quotient:.1f} ×", "≥ 3 ×")


def row(what: str, measured: str, goal: str) -> None:
    print(f"| {what} | {measured} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
