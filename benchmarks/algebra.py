"""Speed of the algebra of adapters, beside peft, LAPACK and plain numpy on the same numbers, in one process.

    python benchmarks/algebra.py [--runs 5] [--rank 16]

Prints a table in Markdown. Everything runs on one thread; the model is GPT-2 of 124M parameters with random
numbers, its adapters change c_attn, c_proj and c_fc (48 modules, 96 tensors each). Ours are whole calls, from files
to a file; peft's and LAPACK's are the computation alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ |= {"HF_HUB_OFFLINE": "1"}

import numpy as np
import peft
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

import adaptrix
from adaptrix.algebra.finetune import changes, difference
from adaptrix.base.fetch import fetch_base
from adaptrix.pipeline import Pipeline

TARGETS = ["c_attn", "c_proj", "c_fc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| what | measured | goal |\n| --- | --- | --- |")
        model = adapters(folder, options.rank)
        combine_against_peft(folder, model, options.runs)
        diff_against_numpy(folder, options.runs)
        fine_tune(folder)
        extract_against_lapack(folder, options.runs, options.rank)


def adapters(folder: Path, rank: int) -> Any:
    """Two adapters in one peft model, and each in a folder."""
    model = None
    for name in ("one", "other"):
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, init_lora_weights=False)
        if model is None:
            base = GPT2LMHeadModel(GPT2Config())
            base.save_pretrained(folder / "base")
            model = peft.get_peft_model(base, config, name)
        else:
            model.add_adapter(name, config)
    assert model is not None
    model.save_pretrained(folder)
    return model


def combine_against_peft(folder: Path, model: Any, runs: int) -> None:
    weights = [0.7, 0.3]
    sources = [folder / "one", folder / "other"]

    def ours(method: str) -> float:
        return timed(lambda: adaptrix.combine(sources, weights, folder / "x", "peft", method=method, force=True))

    def theirs(method: str) -> float:
        model.delete_adapter("sum") if "sum" in model.peft_config else None
        return timed(lambda: model.add_weighted_adapter(["one", "other"], weights, "sum", combination_type=method))

    for method, goal in (("svd", "≥ 50 ×"), ("cat", "–")):
        spent = [ours(method) for _ in range(runs + 1)][1:]
        peft_spent = [theirs(method) for _ in range(1 if method == "svd" else runs)]
        spent += [ours(method) for _ in range(runs)]
        what = f"peft's add_weighted_adapter by {method} ({shown(peft_spent)}) against combine ({shown(spent)})"
        row(what, median(peft_spent) / median(spent), goal)


def diff_against_numpy(folder: Path, runs: int) -> None:
    one, other = adaptrix.load(folder / "one"), adaptrix.load(folder / "other")

    def dense() -> None:
        for target, delta in one.deltas.items():
            X, Y = delta.dense(), other.deltas[target].dense()
            float(np.vdot(X, Y) / np.linalg.norm(X) / np.linalg.norm(Y))

    built, ours = in_turn([dense, lambda: adaptrix.diff(folder / "one", folder / "other")], runs)
    row(f"building every ΔW with numpy ({shown(built)}) against diff ({shown(ours)})", median(built) / median(ours))


def fine_tune(folder: Path) -> None:
    """The base with something of rank 32 in every linear layer, and a little noise of every rank."""
    model = GPT2LMHeadModel.from_pretrained(folder / "base")
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in TARGETS:
                rows, columns = module.weight.shape
                module.weight += 1e-3 * torch.randn(rows, 32) @ torch.randn(32, columns)
                module.weight += 1e-3 * torch.randn(rows, columns)
    model.save_pretrained(folder / "tuned")


def extract_against_lapack(folder: Path, runs: int, rank: int) -> None:
    pipeline = Pipeline()
    models = (fetch_base(str(folder / "base"), pipeline), fetch_base(str(folder / "tuned"), pipeline))
    gpt2 = next(found for found in pipeline.catalog.architectures if found.family == "gpt2")
    targets = changes(*models, gpt2).targets
    matrices = [difference(change, gpt2.roles[site.role]) for site, change in targets.items()]
    kept: dict[str, float] = {}

    def ours(svd: Any) -> None:
        done = adaptrix.extract(folder / "tuned", folder / "base", rank, folder / "y", "peft", svd=svd, force=True)
        kept[svd] = done.kept

    def lapack() -> None:
        for matrix in matrices:
            np.linalg.svd(matrix, full_matrices=False)

    spent = in_turn([lapack, lambda: ours("exact"), lambda: ours("randomised")], max(1, runs // 3))
    for svd, found in zip(("exact", "randomised"), spent[1:], strict=True):
        what = f"extract --rank {rank} --svd {svd} ({shown(found)}, {kept[svd]:.4%} of ‖ΔW‖² kept) against LAPACK's SVD"
        row(f"{what} of the {len(matrices)} matrices ({shown(spent[0])})", median(found) / median(spent[0]), "≤ 1 ×")


def in_turn(calls: Sequence[Callable[[], Any]], runs: int) -> list[list[float]]:
    """Seconds of every call, all of them in turn."""
    turns = [[timed(call) for call in calls] for _ in range(runs)]
    return [list(spent) for spent in zip(*turns, strict=True)]


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def shown(spent: Sequence[float]) -> str:
    found = median(spent)
    return f"{found:.1f} s" if found >= 1 else f"{1000 * found:.0f} ms"


def row(what: str, ratio: float, goal: str = "–") -> None:
    print(f"| {what} | {ratio:.2f} × | {goal} |", flush=True)


if __name__ == "__main__":
    main()
