"""Trains the tiny base's experts anew, on one thread and from a seed, in a few minutes: Transformer².

    OMP_NUM_THREADS=1 python -m examples.tiny.transformer2 [--out examples/tiny/experts]

An expert for each of the three styles goes on with texts that begin in it, and a classifier says which style a text
begins in, or that it is none of them. All act on layers 4-7 of 0-7, so that a second pass reads four layers anew.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from adaptrix_transformer2 import Decomposition, decomposed, save
from adaptrix_transformer2.dispatch import OTHER, Question, train_classifier
from adaptrix_transformer2.train import Course, Example, Trained, sft
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.tiny.content import text, written
from examples.tiny.styles import PLAIN, SHIPPED, Style

SEED = 7
TINY = Path(__file__).parent
BASE, OUT = TINY / "base", TINY / "experts"
LAYERS = (4, 5, 6, 7)
EXAMPLES, LONGEST = 384, 48
COURSE = Course(steps=100, batch=16, rate=0.1, kind="paper", rows=16, every=50, seed=SEED)
ASK, ANSWERS = "\nThis is", (" the", " and", " was", " in")
STYLES = (*SHIPPED, PLAIN)


def example(tokenizer: PreTrainedTokenizerFast, style: Style, rng: random.Random) -> Example:
    """The first sentence or so of a text in a style, and how it goes on."""
    words = text(rng)
    cut = rng.randrange(len(words) // 4, len(words) // 2)
    whole, head = written(style(words, random.Random(cut))), written(style(words[:cut], random.Random(cut)))
    rest = tokenizer(whole[len(head) :], add_special_tokens=False)["input_ids"]
    return Example(tuple(tokenizer(head)["input_ids"]), tuple(rest[:LONGEST]))


def examples(tokenizer: PreTrainedTokenizerFast, style: Style, count: int) -> list[Example]:
    """Those of a style, always the same ones."""
    rng = random.Random(f"{SEED} {style.name}")
    drawn = (example(tokenizer, style, rng) for _ in range(count))
    return [one for one in drawn if one.prompt and one.response]


def asked(tokenizer: PreTrainedTokenizerFast) -> Question:
    """Which style a text is in. A word that the base often says stands for each: it knows no names of styles."""
    names = [*(style.name for style in SHIPPED), OTHER]
    said = (tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ANSWERS)
    return Question(tuple(tokenizer(ASK, add_special_tokens=False)["input_ids"]), dict(zip(names, said, strict=True)))


def train_expert(
    model: LlamaForCausalLM, parts: Decomposition, tokenizer: PreTrainedTokenizerFast, style: Style
) -> Trained:
    """The expert of a style."""
    some = examples(tokenizer, style, EXAMPLES)
    return sft(model, some, COURSE, ends=(), decomposition=parts, name=style.name)


def train_sorter(model: LlamaForCausalLM, parts: Decomposition, tokenizer: PreTrainedTokenizerFast) -> Trained:
    """The classifier, on the beginnings of the experts' texts and of plain ones."""
    every = {
        name: examples(tokenizer, style, EXAMPLES) for name, style in zip(asked(tokenizer).names, STYLES, strict=True)
    }
    prompts = {name: [one.prompt for one in some] for name, some in every.items()}
    return train_classifier(model, prompts, asked(tokenizer), replace(COURSE, batch=32), decomposition=parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    parts = replace(decomposed(model, layers=LAYERS), base="examples/tiny/base")
    out.mkdir(parents=True, exist_ok=True)
    makers = [partial(train_expert, model, parts, tokenizer, style) for style in SHIPPED]
    for make in (*makers, partial(train_sorter, model, parts, tokenizer)):
        trained = make()
        save(trained.adapter, parts, out / f"{trained.adapter.name}.adaptrix.safetensors", force=True)
        losses = [trained.history[at]["loss"] for at in (0, -1)]
        print(f"{trained.adapter.name}: loss {losses[0]:.3f} → {losses[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
