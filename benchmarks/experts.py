"""Experts of singular values on a live model: what a token, a mixed batch, a switch and a load cost.

    python benchmarks/experts.py [--turns 9] [--layers 8] [--hidden 512]

Prints a table in Markdown. One process, one thread; what is compared runs in turn, and a ratio is the median of the
ratios turn by turn. Time is that of the processor. The model is a Llama of random numbers, and the experts have z for
its MLP matrices, as Transformer² has (arXiv 2501.06252). Products by U and V are as large as those by the weights
themselves: a merged expert costs nothing, and a native one is for many experts at once.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import adaptrix
from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.runtime.session import Session
from adaptrix.runtime.spectral import SpectralKernel
from adaptrix.torch_tensor import as_stored
from benchmarks.attach import base, in_turn, ratio, row, steps

NAMES = tuple("abcdefgh")
MATRICES = ("gate_proj", "up_proj", "down_proj")
Block = Callable[[], AbstractContextManager[None]]


def expert(model: LlamaForCausalLM, seed: int, cache: SvdCache) -> Adapter:
    """An adapter of z alone, for every MLP matrix."""
    rng = np.random.default_rng(seed)
    deltas = {}
    for name, module in model.named_modules():
        if name.endswith(MATRICES):
            weight = as_stored(module.weight)
            z = (1 + 0.1 * rng.standard_normal(min(weight.shape))).astype(np.float32)
            deltas[Target(name)] = spectral_delta(z, weight, cache, where=name).without_vectors()
    return Adapter(f"expert {seed}", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def under(block: Block, action: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with block():
            action()

    return run


def by_hand(model: LlamaForCausalLM, session: Session) -> LlamaForCausalLM:
    """A twin with hooks that do the two products of an expert and nothing else: what they cost by themselves."""
    twin = copy.deepcopy(model)
    for name, kernel in kernels(session).items():
        twin.get_submodule(name).register_forward_hook(partial(_add, kernel.axes.V, kernel.d, kernel.axes.Ut))
    return twin


def _add(V: Tensor, d: Tensor, Ut: Tensor, _: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
    y.flatten(0, 1).addmm_(torch.mm(args[0].flatten(0, 1), V).mul_(d), Ut)


def kernels(session: Session) -> dict[str, SpectralKernel]:
    """What the first expert does, by the name of the module."""
    with session.use(NAMES[0]):
        return {session._hooks.modules[site].name: k for site, k in session._hooks.current.kernels.items()}


def merged_with(model: LlamaForCausalLM, session: Session) -> LlamaForCausalLM:
    """A copy with the first expert in its weights."""
    merged = copy.deepcopy(model)
    for name, kernel in kernels(session).items():
        merged.get_submodule(name).weight += ((kernel.axes.V * kernel.d) @ kernel.axes.Ut).T
    return merged


def tokens(model: LlamaForCausalLM, session: Session, turns: int, kind: str) -> None:
    """One decoding step: base, merged, native, and the products of native alone."""
    merged, twin, attached = merged_with(model, session), by_hand(model, session), session._hooks.model
    for batch in (1, 8):
        ids = torch.randint(0, 1000, (batch, 1))
        times = in_turn(
            turns,
            base=steps(model, ids),
            merged=steps(merged, ids),
            native=under(lambda: session.use("a"), steps(attached, ids)),
            by_hand=steps(twin, ids),
        )
        base, merge, hand = (ratio(times["native"], times[name]) for name in ("base", "merged", "by_hand"))
        measured = f"{base:.2f} × base, {merge:.2f} × merged, {hand:.2f} × its products alone"
        row(f"native SVF a token, batch {batch}, {kind}", measured, "")


def mixing(model: LlamaForCausalLM, session: Session, turns: int, kind: str) -> None:
    """Eight experts in a batch of eight, and four rows of the base, against one expert for all."""
    attached = session._hooks.model
    for length in (1, 32):
        ids = torch.randint(0, 1000, (8, length))
        times = in_turn(
            turns,
            base=steps(model, ids),
            one=under(lambda: session.use("a"), steps(attached, ids)),
            eight=under(lambda: session.route(NAMES), steps(attached, ids)),
            half=under(lambda: session.route(["a", None] * 4), steps(attached, ids)),
        )
        eight, half = (ratio(times[name], times["one"]) for name in ("eight", "half"))
        measured = f"{eight:.3f} × one for all; one expert and the base by turns {half:.3f} ×"
        row(f"eight experts in a batch of 8, {length} tokens a row, {kind}", measured, "≤ 1.1 ×")


def switching(session: Session, turns: int, kind: str) -> None:
    """A switch between resident experts; it is so short that a thousand are timed."""

    def switch() -> None:
        for name in NAMES * 125:
            session.activate(name)

    micro = median(in_turn(turns, switch=switch)["switch"]) * 1000
    row(f"switch, 8 experts, {kind}", f"{micro:.1f} µs", "≤ 10 µs")
    session.activate(None)


def loading(model: LlamaForCausalLM, session: Session, adapter: Adapter, turns: int, kind: str) -> None:
    """An expert of weights that the session knows, against the first, which hashes them and reads U and V."""
    spare = copy.deepcopy(model)

    def first() -> None:
        with adaptrix.attach(spare, {"x": adapter}):
            pass

    times = in_turn(turns, first=first, further=lambda: session.load("x", adapter))
    firsts, further = (1000 * median(times[name]) for name in ("first", "further"))
    row(f"load a further expert, {kind}", f"{further:.1f} ms; the first {firsts:.0f} ms", "")


def compared(model: LlamaForCausalLM, turns: int, kind: str) -> None:
    cache = SvdCache()
    adapters = {name: expert(model, seed, cache) for seed, name in enumerate(NAMES)}
    with adaptrix.attach(copy.deepcopy(model), adapters) as session:
        tokens(model, session, turns, kind)
        mixing(model, session, turns, kind)
        switching(session, turns, kind)
        loading(model, session, adapters["b"], turns, kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | measured | goal |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        os.environ["ADAPTRIX_CACHE"] = folder
        for dtype, kind in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            compared(base(options.layers, options.hidden).to(dtype), options.turns, kind)


if __name__ == "__main__":
    main()
