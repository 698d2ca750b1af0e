"""Trains what benchmarks/fit.py fits: a GPT-2 of twelve layers, and adapters over all layers of both bases.

    OMP_NUM_THREADS=1 python benchmarks/fit_base.py [--out out/fit] [--seeds 0 1 2]

On one thread, from seeds: a quarter of an hour for the base, eight minutes at most for an adapter. The texts are those
of the tiny base; what is there already is kept. An adapter learns the pirate's style by peft, as the tiny ones that
are shipped do, but on all layers.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.tiny.styles import SHIPPED
from examples.tiny.train import LINEAR, fit, pairs, stream

TINY = Path(__file__).parents[1] / "examples" / "tiny" / "base"
SEED = 21
BASE_STEPS, ADAPTER_STEPS = 450, {"tiny": 320, "gpt2": 200}
#: ranks and alphas differ, as they do in the wild
RECIPES = {
    "tiny": {"r": 8, "lora_alpha": 12, "target_modules": LINEAR, "rank_pattern": {"k_proj": 5, "v_proj": 6}},
    "gpt2": {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn", "c_proj", "c_fc"]},
}


def blank() -> GPT2LMHeadModel:
    """About ten million parameters that have read nothing."""
    sizes = {"n_embd": 256, "n_layer": 12, "n_head": 8, "n_positions": 256, "vocab_size": 1024}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def base(out: Path) -> Path:
    """The folder of the GPT-2, trained if it is not there; its tokenizer is that of the tiny base."""
    folder = out / "gpt2"
    if not folder.exists():
        torch.manual_seed(SEED)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY)
        model = blank()
        fit(model, stream(tokenizer, random.Random(SEED)), BASE_STEPS, 2e-3, "gpt2")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def adapter(which: str, on: Path, out: Path, seed: int) -> Path:
    """The folder of an adapter over every layer of a base, trained if it is not there."""
    folder = out / f"{which}-pirate-{seed}"
    if not folder.exists():
        torch.manual_seed(seed)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(on)
        lora = peft.LoraConfig(task_type="CAUSAL_LM", **RECIPES[which])
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(on, dtype=torch.float32), lora)
        texts = pairs(tokenizer, SHIPPED[0], random.Random(f"{SEED} {seed}"))
        fit(model, texts, ADAPTER_STEPS[which], 3e-3, folder.name)
        model.peft_config["default"].base_model_name_or_path = str(on)
        model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/fit"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        adapter("tiny", TINY, options.out, seed)
    larger = base(options.out)
    for seed in options.seeds:
        adapter("gpt2", larger, options.out, seed)


if __name__ == "__main__":
    main()
