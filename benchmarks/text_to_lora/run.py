"""Is what a sentence becomes worth more than what could be had without a hypernetwork?

    OMP_NUM_THREADS=1 python benchmarks/text_to_lora/run.py [--seeds 0 1 2 3 4] [--quick] [--results FOLDER]

Each seed has its own base, library, kept tasks and training, on one thread, and leaves a JSON file; a seed that has
one is not run again. The last seed's end prints the table. ``--quick``: one seed, hardly trained, in under a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "plugins" / "adaptrix-text-to-lora" / "src"))

from benchmarks.text_to_lora import adapters, generators
from benchmarks.text_to_lora.embedding import Embedding
from benchmarks.text_to_lora.measure import Learned, Measured, measured
from benchmarks.text_to_lora.plan import FULL, QUICK, Plan
from benchmarks.text_to_lora.report import table
from benchmarks.world.base import OUT, base
from benchmarks.world.descriptions import SEEN, UNSEEN
from benchmarks.world.examples import inputs
from benchmarks.world.lora import Factors
from benchmarks.world.splits import split

RESULTS = Path(__file__).parent / "results"


def one(seed: int, plan: Plan, out: Path = OUT) -> dict[str, dict[str, float]]:
    """The shares of right answers of a seed, by set and name, and the seconds of processor time that each step took."""
    clock, tasks = [time.process_time()], split(seed)
    model = base(seed, out, plan.base).requires_grad_(False)
    train, test = inputs(seed)
    clock.append(time.process_time())
    taught = (*tasks.library, *tasks.more)
    kept = (*taught, *tasks.parameters, *tasks.compositions)
    every = adapters.each(model, kept, train, plan, seed)
    clock.append(time.process_time())
    library, parameters, compositions = _cut(every, [len(taught), len(tasks.parameters), len(tasks.compositions)])
    embedding = Embedding.fitted(taught, SEEN)
    known = embedding(taught, SEEN)
    anyones = known[:, ::4].flatten(0, 1).expand(len(known), -1, -1)
    learned = Learned(
        embedding,
        known,
        library,
        adapters.together(model, taught, train, plan, seed),
        generators.fine_tuned(model, taught, known, train, plan, seed),
        generators.fine_tuned(model, taught, anyones, train, plan, seed),
        generators.reconstructed(model, library, known, plan, seed),
    )
    clock.append(time.process_time())
    sets = {
        "unseen descriptions": Measured(tasks.library, UNSEEN, _cut(library, [len(tasks.library), len(tasks.more)])[0]),
        "unseen parameters": Measured(tasks.parameters, UNSEEN, parameters),
        "unseen compositions": Measured(tasks.compositions, UNSEEN, compositions),
    }
    found = {name: measured(model, learned, on, test[: plan.measured], seed) for name, on in sets.items()}
    clock.append(time.process_time())
    steps = ("base", "library and oracles", "generators", "measuring")
    return found | {"seconds": {step: round(b - a, 1) for step, a, b in zip(steps, clock, clock[1:], strict=False)}}


def _cut(factors: Factors, counts: list[int]) -> list[Factors]:
    pieces = {name: (A.split(counts), B.split(counts)) for name, (A, B) in factors.items()}
    return [{name: (A[index], B[index]) for name, (A, B) in pieces.items()} for index in range(len(counts))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--world", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds[:1] if options.quick else options.seeds:
        file = options.results / f"{'quick' if options.quick else 'seed'}-{seed}.json"
        if not file.exists():
            found = one(seed, QUICK if options.quick else FULL, options.world)
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        print(f"{file}: {json.loads(file.read_text())['seconds']}", flush=True)
    print(table(sorted(options.results.glob("quick-*.json" if options.quick else "seed-*.json"))))


if __name__ == "__main__":
    main()
