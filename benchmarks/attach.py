"""A live model with adapters, beside the same model in peft: what a switch, a load and a token cost.

    python benchmarks/attach.py [--turns 15] [--layers 32] [--hidden 64]

Prints a table in Markdown. One process, one thread, fp32; what is compared runs in turn, and a ratio is the
median of the ratios turn by turn. The model is a Llama of random numbers: its layers are narrow, so that what a
library adds to every module is seen and not hidden behind the products.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import peft
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import adaptrix

NAMES = tuple("abcdefgh")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = ALL[:4]
Times = dict[str, list[float]]


def in_turn(turns: int, **actions: Callable[[], object]) -> Times:
    """Seconds of every action, once to warm up and then all of them in turn."""
    times: Times = {name: [] for name in actions}
    for turn in range(turns + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(top: list[float], bottom: list[float]) -> float:
    return median(a / b for a, b in zip(top, bottom, strict=True))


def base(layers: int, hidden: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    return LlamaForCausalLM(config).eval()


def adapters(model: LlamaForCausalLM, folder: Path, targets: list[str], names: tuple[str, ...]) -> dict[str, Path]:
    """PEFT folders with non-zero factors of rank 8."""
    made = {}
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(folder / name)
        made[name] = folder / name
    return made


def in_peft(model: LlamaForCausalLM, folders: Mapping[str, Path]) -> peft.PeftModel:
    names = list(folders)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folders[names[0]], adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(folders[name], adapter_name=name)
    adapted.set_adapter(names[0])
    return adapted.eval()


def row(what: str, measured: str, goal: str) -> None:
    print(f"| {what} | {measured} | {goal} |", flush=True)


def switching(session: adaptrix.Session, adapted: peft.PeftModel, turns: int) -> None:
    """A switch between resident adapters; ours is so short that a thousand are timed."""
    names = iter(NAMES * (turns + 1))

    def ours() -> None:
        for name in NAMES * 125:
            session.activate(name)

    times = in_turn(turns, ours=ours, peft=lambda: adapted.set_adapter(next(names)))
    micro = median(times["ours"]) * 1000
    factor = ratio(times["peft"], times["ours"]) * 1000
    theirs = 1000 * median(times["peft"])
    row(
        "switch, 224 modules, 8 adapters",
        f"{micro:.1f} µs; peft's set_adapter ({theirs:.1f} ms) {factor:,.0f} ×",
        "≤ 10 µs, ≥ 1000 ×",
    )
    session.activate(None)


def loading(model: LlamaForCausalLM, folder: Path, turns: int) -> None:
    """A new adapter of 256 tensors into a live model that has one already."""
    made = adapters(model, folder, ATTENTION, ("x", "y"))
    adapted = in_peft(model, {"x": made["x"]})
    with adaptrix.attach(copy.deepcopy(model), {"x": made["x"]}) as session:

        def ours() -> None:
            session.load("y", made["y"])

        def theirs() -> None:
            adapted.load_adapter(made["y"], adapter_name="y")

        times: Times = {"read": [], "ours": [], "peft": []}
        for turn in range(turns + 1):
            once = in_turn(0, ours=lambda: None) and {
                "read": timed(lambda: load_file(made["y"] / "adapter_model.safetensors")),
                "ours": timed(ours),
                "peft": timed(theirs),
            }
            adapted.delete_adapter("y")
            session.unload("y")
            for name, seconds in once.items():
                if turn:
                    times[name].append(seconds)
    read, ours_ms = 1000 * median(times["read"]), 1000 * median(times["ours"])
    measured = f"{ratio(times['ours'], times['read']):.1f} × the read ({ours_ms:.1f} ms, {read:.1f} ms); peft's load_adapter {ratio(times['peft'], times['ours']):.1f} ×"
    row("load 256 tensors into a live session", measured, "≤ 4 × the read; ≥ 10 ×")


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def tokens(
    model: LlamaForCausalLM,
    session: adaptrix.Session,
    attached: LlamaForCausalLM,
    adapted: peft.PeftModel,
    batch: int,
    turns: int,
) -> None:
    """One decoding step: the base, attached and idle, one adapter here and in peft."""
    ids = torch.randint(0, 1000, (batch, 1))

    def step(of: torch.nn.Module, choice: str | None = None) -> Callable[[], object]:
        def run() -> None:
            with session.use(choice) if choice else nullcontext():
                for _ in range(5):
                    of(ids, use_cache=False)

        return run

    times = in_turn(turns, base=step(model), idle=step(attached), one=step(attached, "a"), peft=step(adapted))
    ours = median((b - a) / a for a, b in zip(times["base"], times["one"], strict=True))
    theirs = median((b - a) / a for a, b in zip(times["base"], times["peft"], strict=True))
    row(
        f"overhead of a token, batch {batch}",
        f"{ours:.2f} of base; peft {theirs:.2f}; share {ours / theirs:.2f}",
        "≤ 0.33 of peft's",
    )
    row(f"attached and idle, batch {batch}", f"{ratio(times['idle'], times['base']):.3f} × base", "≤ 1.05 ×")


def rows(session: adaptrix.Session, attached: LlamaForCausalLM, adapted: peft.PeftModel, turns: int) -> None:
    """Four adapters in a batch of eight, against one for all."""
    ids = torch.randint(0, 1000, (8, 1))
    wanted = [name for name in NAMES[:4] for _ in range(2)]

    def one() -> None:
        with session.use("a"):
            for _ in range(5):
                attached(ids, use_cache=False)

    def four() -> None:
        with session.route(wanted):
            for _ in range(5):
                attached(ids, use_cache=False)

    def peft_one() -> None:
        for _ in range(5):
            adapted(ids, use_cache=False)

    def peft_four() -> None:
        for _ in range(5):
            adapted(ids, use_cache=False, adapter_names=wanted)

    times = in_turn(turns, one=one, four=four, peft_one=peft_one, peft_four=peft_four)
    ours, theirs = ratio(times["four"], times["one"]), ratio(times["peft_four"], times["peft_one"])
    row("four adapters in a batch of 8", f"{ours:.2f} × one for all; peft {theirs:.2f} ×", "≤ 1.25 ×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = base(options.layers, options.hidden)
    print("| what | measured | goal |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        made = adapters(model, Path(name), ALL, NAMES)
        adapted, attached = in_peft(model, made), copy.deepcopy(model)
        with adaptrix.attach(attached, made) as session:
            switching(session, adapted, options.turns)
            for batch in (1, 8):
                tokens(model, session, attached, adapted, batch, options.turns)
            rows(session, attached, adapted, options.turns)
        loading(model, Path(name), options.turns)


if __name__ == "__main__":
    main()
