"""A live model with adapters, beside the same model in peft: what a switch, a load and a token cost.

    python benchmarks/attach.py [--turns 15] [--layers 32] [--hidden 64]

Prints a table in Markdown. One process, one thread, fp32; what is compared runs in turn, and a ratio is the
median of the ratios turn by turn. Time is that of the processor, which one thread alone on a core would take. The
model is a Llama of random numbers: its layers are narrow, so that what a library adds to every module is seen and
not hidden behind the products.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import peft
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptrix
from adaptrix.runtime.session import Session

NAMES = tuple("abcdefgh")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = ALL[:4]
Times = dict[str, list[float]]


def in_turn(turns: int, cleanup: Callable[[], object] = lambda: None, **actions: Callable[[], object]) -> Times:
    """Processor seconds of every action, once to warm up and then all of them in turn; ``cleanup`` is not timed.

    Each turn begins with the next one: what an action leaves in the caches costs the one after it some hundredths.
    """
    times: Times = {name: [] for name in actions}
    names = list(actions)
    for turn in range(turns + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            actions[name]()
            if turn:
                times[name].append(time.process_time() - start)
        cleanup()
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


def switching(session: Session, adapted: peft.PeftModel, turns: int) -> None:
    """A switch between resident adapters; ours is so short that a thousand are timed."""
    names = iter(NAMES * (turns + 1))

    def ours() -> None:
        for name in NAMES * 125:
            session.activate(name)

    times = in_turn(turns, ours=ours, peft=lambda: adapted.set_adapter(next(names)))
    micro = median(times["ours"]) * 1000
    factor = ratio(times["peft"], times["ours"]) * 1000
    theirs = 1000 * median(times["peft"])
    measured = f"{micro:.1f} µs; peft's set_adapter ({theirs:.1f} ms) {factor:,.0f} ×"
    row("switch, 224 modules, 8 adapters", measured, "≤ 10 µs, ≥ 1000 ×")
    session.activate(None)


def loading(model: LlamaForCausalLM, folder: Path, turns: int) -> None:
    """A new adapter of 256 tensors into a live model that has one already."""
    made = adapters(model, folder, ATTENTION, ("x", "y"))
    adapted = in_peft(model, {"x": made["x"]})
    with adaptrix.attach(copy.deepcopy(model), {"x": made["x"]}) as session:
        times = in_turn(
            turns,
            cleanup=lambda: (adapted.delete_adapter("y"), session.unload("y")),
            read=lambda: load_file(made["y"] / "adapter_model.safetensors"),
            ours=lambda: session.load("y", made["y"]),
            peft=lambda: adapted.load_adapter(made["y"], adapter_name="y"),
        )
    ours, read = 1000 * median(times["ours"]), 1000 * median(times["read"])
    reads, factor = ratio(times["ours"], times["read"]), ratio(times["peft"], times["ours"])
    measured = f"{reads:.1f} × the read ({ours:.1f} ms, {read:.1f} ms); peft's load_adapter {factor:.1f} ×"
    row("load 256 tensors into a live session", measured, "≤ 4 × the read; ≥ 10 ×")


def hooked(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A twin with hooks that do nothing: what torch itself takes for a module that has any."""
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda *_: None)
    return twin


def tokens(model: LlamaForCausalLM, session: Session, attached: nn.Module, adapted: nn.Module, turns: int) -> None:
    """One decoding step: the base, attached and idle, one adapter here and in peft."""
    nothing = hooked(model)
    for batch in (1, 8):
        ids = torch.randint(0, 1000, (batch, 1))
        with session.use("a"):
            times = in_turn(turns, base=steps(model, ids), one=steps(attached, ids), peft=steps(adapted, ids))
        ours, theirs = (ratio(times[name], times["base"]) - 1 for name in ("one", "peft"))
        measured = f"{ours:.2f} of base; peft {theirs:.2f}, of which it is {ours / theirs:.2f}"
        row(f"overhead of a token, batch {batch}", measured, "≤ 0.33 of peft's")
        times = in_turn(turns, base=steps(model, ids), idle=steps(attached, ids), nothing=steps(nothing, ids))
        idle, floor = (ratio(times[name], times["base"]) for name in ("idle", "nothing"))
        row(f"attached and idle, batch {batch}", f"{idle:.2f} × base; hooks that do nothing {floor:.2f} ×", "≤ 1.05 ×")


def steps(model: nn.Module, ids: torch.Tensor, **options: Any) -> Callable[[], None]:
    def run() -> None:
        for _ in range(5):
            model(ids, use_cache=False, **options)

    return run


def rows(session: Session, attached: nn.Module, adapted: nn.Module, turns: int) -> None:
    """Four adapters in a batch of eight, against one for all."""
    ids = torch.randint(0, 1000, (8, 1))
    wanted = [name for name in NAMES[:4] for _ in range(2)]
    one, four = steps(attached, ids), steps(attached, ids)

    def under(block: Callable[[], AbstractContextManager[None]], action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            with block():
                action()

        return run

    times = in_turn(
        turns,
        one=under(lambda: session.use("a"), one),
        four=under(lambda: session.route(wanted), four),
        peft_one=steps(adapted, ids),
        peft_four=steps(adapted, ids, adapter_names=wanted),
    )
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
            tokens(model, session, attached, adapted, options.turns)
            rows(session, attached, adapted, options.turns)
        loading(model, Path(name), options.turns)


if __name__ == "__main__":
    main()
