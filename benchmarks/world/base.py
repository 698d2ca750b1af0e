"""The base: a Llama of two layers, trained from a seed on examples of every task.

    OMP_NUM_THREADS=1 python benchmarks/world/base.py [--out out/world] [--seeds 0 1 2 3 4]

Some of its texts begin with the task in a terse notation (``rev + 3``), the others say nothing of it, so the base has
met every task, kept ones too, and an input alone leaves open which one is meant. It never reads a description.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.world.operations import LENGTH, MODULUS
from benchmarks.world.splits import families
from benchmarks.world.vocabulary import END, PAD, START, notation, padded, rows, tokens, vocabulary

OUT = Path("out/world")
IGNORED = -100
_DRAWN = {"affine": 0.25, "cipher": 0.15, "places": 0.2, "composed": 0.4}


@dataclass(frozen=True, slots=True)
class Pretraining:
    """``steps`` of AdamW with ``texts`` each, of which a share is ``told`` its task; the rate falls as a cosine."""

    steps: int = 2400
    texts: int = 64
    rate: float = 3e-3
    told: float = 0.7


WHOLE = Pretraining()


def blank() -> LlamaForCausalLM:
    """About 120,000 parameters that have read nothing: width 64, two layers, grouped queries."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "max_position_embeddings": 128}
    start = {"initializer_range": 0.1}  # about 1/√64; the usual 0.02 learns these tasks five times slower
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    known = vocabulary()
    marks = {"bos_token_id": known[START], "eos_token_id": known[END], "pad_token_id": known[PAD]}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(known), tie_word_embeddings=False, **sizes, **heads, **marks, **start)
    )


def base(seed: int, out: Path = OUT, recipe: Pretraining = WHOLE) -> LlamaForCausalLM:
    """The base of a seed, in evaluation mode; trained if it is not in ``out`` yet."""
    name = f"base-{seed}-{recipe.steps}-{recipe.texts}-{recipe.rate:g}-{recipe.told:g}"
    folder = out / name
    if not folder.exists():
        model = _trained(seed, recipe)
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as beside:
            model.save_pretrained(Path(beside) / name)
            if not folder.exists():  # another process may have trained the same meanwhile
                (Path(beside) / name).rename(folder)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _trained(seed: int, recipe: Pretraining) -> LlamaForCausalLM:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = blank()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01, fused=True)
    texts = texts_of(np.random.default_rng(seed), recipe)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (step + 1) / 100) * (0.51 + 0.49 * cos(pi * step / recipe.steps))
        ids, labels = next(texts)
        states = model.model(input_ids=ids).last_hidden_state[:, :-1]
        learned = labels[:, 1:] != IGNORED
        loss = functional.cross_entropy(model.lm_head(states[learned]), labels[:, 1:][learned])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model


def texts_of(rng: np.random.Generator, recipe: Pretraining) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of texts, and as labels the answers in them."""
    known, tasks, shares = vocabulary(), families(), list(_DRAWN.values())
    while True:
        texts, answers = [], []
        for family in rng.choice(list(_DRAWN), recipe.texts, p=shares):
            task = tasks[family][rng.integers(len(tasks[family]))]
            start, *rest = rows(task, rng.integers(0, MODULUS, (1, LENGTH)))[0].tolist()
            told = tokens(notation(task)) if rng.random() < recipe.told else []
            texts.append([start, *told, *rest, known[END]])
            answers.append(len(texts[-1]) - LENGTH - 1)
        ids = padded(texts)
        places = torch.arange(ids.shape[1])
        learned = (places >= torch.tensor(answers)[:, None]) & (ids != known[PAD])
        yield ids, ids.masked_fill(~learned, IGNORED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        base(seed, options.out)


if __name__ == "__main__":
    main()
