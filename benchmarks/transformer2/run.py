"""Experts of singular values and how they are chosen, beside LoRAs, on a small base: what works, and what does not.

    OMP_NUM_THREADS=1 python benchmarks/transformer2/run.py [--seeds 0 1 2 3 4] [--quick]

Every seed has a base, tasks, examples and trainings of its own. What a seed gave is kept in ``--results``, and not
measured again; the report and its plot are of all seeds asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))

from adaptrix_transformer2 import decomposed

from benchmarks.transformer2.adapters import train
from benchmarks.transformer2.base import told_base
from benchmarks.transformer2.lora import Lora
from benchmarks.transformer2.measure import measured
from benchmarks.transformer2.plan import FULL, QUICK, RANK, Plan
from benchmarks.transformer2.report import report
from benchmarks.transformer2.tasks import asked, tasks_of


def seed_figures(seed: int, plan: Plan, world: Path) -> dict[str, Any]:
    """Trains and measures everything of a seed."""
    begun, tasks = time.process_time(), tasks_of(seed)
    question = asked(tasks)
    model = told_base(tasks, question, plan, seed, world)
    parts = decomposed(model)
    trained = train(model, parts, tasks, question, plan, seed)
    found = measured(model, parts, tasks, question, trained, plan, seed)
    numbers = {"svf": sum(delta.rank for delta in parts.spectra.values())}
    numbers["lora"] = Lora(model, parts.spectra, RANK, seed).numbers
    numbers["base"] = sum(one.numel() for one in model.parameters())
    return {**found, "seed": seed, "numbers": numbers, "seconds": round(time.process_time() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="a training of each kind in a few steps, on one seed")
    parser.add_argument("--results", type=Path, default=Path("out/transformer2"))
    parser.add_argument("--world", type=Path, default=Path("out/world"), help="where the world's bases are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    plan, seeds = (QUICK, [0]) if options.quick else (FULL, options.seeds)
    options.results.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = options.results / f"seed-{seed}{'-quick' if options.quick else ''}.json"
        if not path.exists():
            found = json.dumps(seed_figures(seed, plan, options.world), indent=1)
            path.write_text(found + "\n")
    names = [f"seed-{seed}{'-quick' if options.quick else ''}.json" for seed in seeds]
    report([json.loads((options.results / name).read_text()) for name in names], options.results)


if __name__ == "__main__":
    main()
