"""LoRAs of stacked experts on a live mixture of experts: what a pass costs attached, beside the base and peft.

    python benchmarks/moe.py [--turns 7] [--hidden 512] [--inner 1024] [--layers 4]

Prints a table in Markdown: a tiny model, and one of the sizes given, with 8 experts of which 2 take each token. peft
has the same adapter by its ``target_parameters``. One process, one thread; what is compared runs in turn, and a ratio
is the median of the ratios turn by turn. Time is that of the processor. The base alone computes its experts as
transformers does unasked, by one grouped product, and by its loop, which is what runs where an adapter is active.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from contextvars import copy_context
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import peft
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import adaptrix
from benchmarks.attach import in_turn, ratio

TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def base(hidden: int, inner: int, layers: int) -> MixtralForCausalLM:
    """A Mixtral of random numbers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()


def adapted(model: MixtralForCausalLM, folder: str) -> peft.PeftModel:
    """A LoRA of rank 8 on every expert as peft has it on the model, and its files."""
    config = peft.LoraConfig(r=8, lora_alpha=16, init_lora_weights=False, target_modules=[], target_parameters=TARGETS)
    made = peft.get_peft_model(copy.deepcopy(model), config).eval()
    made.save_pretrained(folder)
    return made


def measured(sizes: tuple[int, int, int], turns: int) -> None:
    """Prints a row for each number of tokens."""
    model = base(*sizes)
    loop = copy.deepcopy(model)
    loop.set_experts_implementation("eager")
    with tempfile.TemporaryDirectory() as folder:
        theirs = adapted(model, folder)
        with torch.inference_mode(), adaptrix.attach(model, {"x": folder}) as session:
            for rows, tokens in ((1, 1), (1, 128), (8, 1)):
                given = torch.randint(0, 256, (rows, tokens))
                with session.use("x"):
                    within = copy_context()
                runs = {name: partial(one, given) for name, one in (("base", model), ("loop", loop), ("peft", theirs))}
                times = in_turn(turns, **runs, attached=partial(within.run, model, given))
                over = [f"{ratio(times[name], times['base']):.2f} ×" for name in ("attached", "loop", "peft")]
                print(f"| hidden {sizes[0]}, {sizes[2]} layers, {rows} × {tokens} tokens |", " | ".join(over), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("turns", 7), ("hidden", 512), ("inner", 1024), ("layers", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    print("| a pass over that of the base alone | attached | the base by its loop | peft |\n| --- | --- | --- | --- |")
    measured((64, 96, 2), options.turns)
    measured((options.hidden, options.inner, options.layers), options.turns)


if __name__ == "__main__":
    main()
