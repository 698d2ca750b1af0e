"""What a swap costs in the middle of a text, and a prompt for several adapters, beside reading the text again.

    python benchmarks/swap.py [--turns 5] [--tokens 1024] [--shapes gpt2 llama narrow]

Prints tables in Markdown. One process, one thread, fp32, models of random numbers with LoRA of rank 16 on every
linear layer from L0 on. What is compared runs in turn, and a ratio is the median of the ratios turn by turn; time
is that of the processor, which one thread alone on a core would take.
A re-prefill is what a user would do: the model, under the new adapter, on all tokens with an empty
``DynamicCache``, and logits of the last position alone (``logits_to_keep=1``). A swap makes no logits.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import adaptrix
from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.delta import LowRank
from adaptrix.tensor import Tensor

RANK = 16
NAMES = ["a", "b", "c"]
_LLAMA = {"model_type": "llama", "vocab_size": 4096, "max_position_embeddings": 4096}
SHAPES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 12, "n_embd": 512, "n_head": 8, "n_positions": 4096, "vocab_size": 4096},
    "llama": {**_LLAMA, "num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 1376,
              "num_attention_heads": 8, "num_key_value_heads": 4},
    "narrow": {**_LLAMA, "num_hidden_layers": 32, "hidden_size": 64, "intermediate_size": 172,
               "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.tokens} tokens, torch {torch.__version__}, one thread\n")
    print("| model | L0 | re-prefill | swap ÷ re-prefill | (L − L0) ÷ L | over | 3 shared ÷ 3 prefills | at best |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for shape in options.shapes:
        model = random_model(shape)
        layers = model.config.num_hidden_layers
        for first in (layers // 4, layers // 2, 3 * layers // 4):
            print(row(shape, model, first, options.tokens, options.turns), flush=True)


def row(shape: str, model: PreTrainedModel, first: int, tokens: int, turns: int) -> str:
    """One line of the table: a model and the first injected layer."""
    torch.manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens))
    with torch.no_grad(), adaptrix.attach(model, {name: adapter(model, first, name) for name in NAMES}) as session:
        session.activate("a")
        cache = session.new_cache()
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def read(name: str) -> None:
            with session.use(name):
                fresh = DynamicCache(config=model.config)
                model(input_ids=ids, past_key_values=fresh, use_cache=True, logits_to_keep=1)

        one, swap = in_turn(turns, lambda: read("b"), lambda: session.swap("b", cache))
        every, shared = in_turn(
            turns, lambda: [read(name) for name in NAMES], lambda: session.prefill_shared({"input_ids": ids}, NAMES)
        )
    layers = model.config.num_hidden_layers
    share = (layers - first) / layers
    found = ratio(swap, one)
    title = f"{shape}, {layers} × {model.config.hidden_size}"
    return (
        f"| {title} | {first} | {1000 * median(one):.0f} ms | {found:.3f} | {share:.3f} | {found - share:+.3f} "
        f"| {ratio(shared, every):.3f} | {(1 + 2 * share) / 3:.3f} |"
    )


def random_model(shape: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape])).eval()


def adapter(model: PreTrainedModel, first: int, name: str) -> Adapter:
    """LoRA on every linear layer of the model's layers from ``first`` on."""
    rng = np.random.default_rng(ord(name))
    deltas = {
        Target(path): LowRank(factor(rng, RANK, inp), factor(rng, out, RANK), alpha=RANK)
        for path, inp, out in linear_layers(model)
        if int(path.split(".")[2]) >= first
    }
    return Adapter(name, deltas, {}, Provenance("memory", "made"))


def linear_layers(model: PreTrainedModel) -> list[tuple[str, int, int]]:
    """Path, inputs and outputs of the linear layers inside the model's layers."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and path.count(".") > 2:
            sizes = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
            found.append((path, *sizes))
    return found


def factor(rng: np.random.Generator, rows: int, columns: int) -> Tensor:
    return Tensor.of(rng.standard_normal((rows, columns), dtype=np.float32) / 32)


def in_turn(turns: int, *actions: Callable[[], object]) -> list[list[float]]:
    """Processor seconds of every action, once to warm up and then all of them in turn."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(turns + 1):
        for seconds, action in zip(times, actions, strict=True):
            start = time.process_time()
            action()
            if turn:
                seconds.append(time.process_time() - start)
    return times


def ratio(top: list[float], bottom: list[float]) -> float:
    return median(a / b for a, b in zip(top, bottom, strict=True))


if __name__ == "__main__":
    main()
