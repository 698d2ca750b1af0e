"""Spectral deltas beside LAPACK and peft on the same numbers: decomposing a base, keeping that, and making a LoRA.

    python benchmarks/spectral.py [--layers 2] [--runs 3]

Prints a table in Markdown. Everything runs on one thread; the base is GPT-2 of 124M parameters' width with so many
layers and random numbers, the delta is on every linear module of them (c_attn, c_proj, c_fc), z is random.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ |= {"HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

import adaptrix
from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor

Weights = dict[str, Tensor]
MODULES = ("c_attn", "c_proj", "c_fc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ADAPTRIX_CACHE"] = str(folder / "cache")
        weights = base(folder / "base", options.layers)
        print("| what | measured | goal |\n| --- | --- | --- |")
        decomposing_against_lapack(folder, weights, options.runs)
        converting(folder, weights)


def base(folder: Path, layers: int) -> Weights:
    """A saved GPT-2, and its linear weights by module."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=layers)).save_pretrained(folder)
    tensors = safetensors_file.read(folder / "model.safetensors")[0]
    paths = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith(".weight")}
    return {path: tensor for path, tensor in paths.items() if path.rpartition(".")[2] in MODULES}


def decomposing_against_lapack(folder: Path, weights: Weights, runs: int) -> None:
    """Cold, kept and LAPACK's own time, in turn; numpy has it compute in fp64 whatever it is given, torch does not."""
    matrices = [tensor.float32().T for tensor in weights.values()]
    singles = [torch.from_numpy(matrix.copy()) for matrix in matrices]
    spent: dict[str, list[float]] = {"lapack": [], "fp32": [], "cold": [], "kept": []}
    for run in range(runs):
        cache = SvdCache(folder / f"svd{run}")
        spent["lapack"].append(timed(lambda: [np.linalg.svd(matrix, full_matrices=False) for matrix in matrices]))
        spent["fp32"].append(timed(lambda: [torch.linalg.svd(single, full_matrices=False) for single in singles]))
        for how in ("cold", "kept"):
            spent[how].append(timed(lambda cache=cache: [cache.svd(w, turned=True) for w in weights.values()]))
    cold, kept = median(spent["cold"]), median(spent["kept"])
    what = (
        f"decomposing {len(matrices)} matrices and writing that ({shown(spent['cold'])}) against LAPACK's SVD of them"
    )
    row(f"{what} in fp64 ({shown(spent['lapack'])})", cold / median(spent["lapack"]))
    row(f"the same against LAPACK's in fp32, torch's ({shown(spent['fp32'])})", cold / median(spent["fp32"]))
    row(f"having it the second time ({shown(spent['kept'])}) against that", kept / cold)


def converting(folder: Path, weights: Weights) -> None:
    """How large the files are, and what a rank leaves out."""
    cache, rng = SvdCache(folder / "svd0"), np.random.default_rng(0)
    deltas = {
        Target(path): spectral_delta(rng.normal(1, 0.1, min(w.shape)).astype(np.float32), w, cache, turned=True)
        for path, w in weights.items()
    }
    made = Adapter("expert", MappingProxyType(deltas), MappingProxyType({}), Provenance("benchmark", "made"))
    sizes = {}
    for vectors in ("omit", "include"):
        path = folder / f"{vectors}.adaptrix.safetensors"
        adaptrix.convert(made, path, base=folder / "base", layers="all", vectors=vectors)
        sizes[vectors] = path.stat().st_size
    lora = adaptrix.convert(made, folder / "lora", to="peft", base=folder / "base")
    sizes["lora"] = (lora / "adapter_model.safetensors").stat().st_size
    held = sum(tensor.nbytes for tensor in weights.values())
    for what, key in (("z and S alone", "omit"), ("with U and V", "include"), ("as an exact LoRA", "lora")):
        print(f"| {what} ({sizes[key] / 1e6:.3g} MB) of the weights' bytes ({held / 1e6:.3g} MB)", end="")
        print(f" | {sizes[key] / held:.2%} | – |")
    for rank in (8, 64, 512):
        errors = [delta.lost(rank).relative for delta in deltas.values()]
        print(
            f"| rank {rank}: what it leaves out of ‖ΔW‖, from site to site | {min(errors):.2f}–{max(errors):.2f} | – |"
        )


def timed(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def shown(spent: Sequence[float]) -> str:
    found = median(spent)
    return f"{found:.1f} s" if found >= 1 else f"{1000 * found:.0f} ms"


def row(what: str, ratio: float, goal: str = "–") -> None:
    print(f"| {what} | {ratio:.3g} × | {goal} |", flush=True)


if __name__ == "__main__":
    main()
