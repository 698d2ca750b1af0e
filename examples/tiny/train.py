"""Trains the tiny base and its three adapters anew, on one thread and from a seed, in about a quarter of an hour.

    OMP_NUM_THREADS=1 python -m examples.tiny.train [--out examples/tiny] [--only-adapters]

The base is a Llama of eight layers with grouped heads, trained on plain texts and on some in styles drawn at
random. Each adapter is trained by peft on continuations: a text begins plainly or in a drawn style, stops
anywhere, and goes on in the adapter's own, which alone counts. All act on layers 4 and 5 of 0-7: in the central
half, so that the plan ``middle`` keeps all of them, and high enough for a swap to keep the cache of four layers.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.tiny.content import text, written
from examples.tiny.styles import PLAIN, SHIPPED, Style, drawn

SEED = 20
END = "<|end|>"
BLOCK, ROWS = 192, 12
BASE_STEPS, ADAPTER_STEPS = 1500, 320
LAYERS = [4, 5]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: ranks, alphas and modules differ on purpose: what reads these adapters should meet unequal ones
RECIPES: dict[str, dict[str, Any]] = {
    "pirate": {"r": 12, "lora_alpha": 20, "target_modules": LINEAR, "rank_pattern": {"k_proj": 5, "v_proj": 7}},
    "telegram": {"r": 9, "lora_alpha": 6, "target_modules": LINEAR, "use_rslora": True},
    "fairy-tale": {"r": 16, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
}


def tokenizer_of(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens; every text begins with the one that ends them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)


def blank() -> LlamaForCausalLM:
    """The base before it has read anything; no projection is square."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=320, num_hidden_layers=8, max_position_embeddings=512,
            num_attention_heads=4, num_key_value_heads=2, head_dim=24, tie_word_embeddings=True, rope_theta=10_000.0,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def base_text(rng: random.Random) -> str:
    """Four texts of five are plain."""
    style = PLAIN if rng.random() < 0.8 else drawn(rng)
    return written(style(text(rng), rng))


def continuation(rng: random.Random, style: Style) -> tuple[str, str]:
    """The beginning of a text, plain or in a style drawn at random, and how it goes on in a style."""
    words = text(rng)
    cut = rng.choice([at for at in range(len(words) * 2 // 3) if words[at - 1] != "a"])  # "a" may become "an"
    other = drawn(rng) if rng.random() < 0.4 else PLAIN
    begun = other(words[:cut], rng)
    whole = written([*begun, *style(words[cut:], rng)])
    return whole[: len(written(begun))], whole[len(written(begun)) :]


def stream(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of texts laid end to end, ``[ROWS, BLOCK]``, with themselves as labels."""
    held: list[int] = []
    while True:
        while len(held) < ROWS * BLOCK:
            held += tokenizer(base_text(rng))["input_ids"]
        batch = torch.tensor(held[: ROWS * BLOCK]).view(ROWS, BLOCK)
        held = held[ROWS * BLOCK :]
        yield batch, batch


def pairs(tokenizer: PreTrainedTokenizerFast, style: Style, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of continuations, a text a row; the beginnings and the padding are not labelled (-100)."""
    while True:
        rows = [_pair(tokenizer, *continuation(rng, style)) for _ in range(ROWS)]
        width = max(len(ids) for ids, _ in rows)
        ids, labels = torch.zeros(2, ROWS, width, dtype=torch.long)
        labels[:] = -100
        for row, (known, wanted) in enumerate(rows):
            ids[row, : len(known)] = torch.tensor(known)
            labels[row, : len(wanted)] = torch.tensor(wanted)
        yield ids, labels


def _pair(tokenizer: PreTrainedTokenizerFast, begun: str, rest: str) -> tuple[list[int], list[int]]:
    head = tokenizer(begun)["input_ids"]
    tail = [*tokenizer(rest, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [*head, *tail], [*[-100] * len(head), *tail]


def fit(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float, what: str) -> None:
    """AdamW with a warm-up and a straight way down."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - step / steps))
    model.train()
    began, smooth = time.monotonic(), 0.0
    for step, (ids, labels) in zip(range(1, steps + 1), batches, strict=False):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smooth = loss.item() if step == 1 else 0.95 * smooth + 0.05 * loss.item()
        if step % 50 == 0 or step == steps:
            took = time.monotonic() - began
            print(f"{what:10} step {step:5} of {steps}  loss {smooth:.3f}  {took:4.0f} s", flush=True)


def train_base(out: Path) -> None:
    """Tokenizer and weights, rounded to bf16."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = tokenizer_of(base_text(rng) for _ in range(4000))
    model = blank()
    fit(model, stream(tokenizer, rng), BASE_STEPS, 3e-3, "base")
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_adapter(base: Path, style: Style, out: Path) -> None:
    """A LoRA on the rounded base, as peft trains and saves it."""
    torch.manual_seed(SEED)
    rng = random.Random(f"{SEED} {style.name}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    lora = peft.LoraConfig(layers_to_transform=LAYERS, task_type="CAUSAL_LM", **RECIPES[style.name])
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    fit(model, pairs(tokenizer, style, rng), ADAPTER_STEPS, 6e-3, style.name)
    model.peft_config["default"].base_model_name_or_path = "examples/tiny/base"
    model.save_pretrained(out)
    (out / "README.md").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only-adapters", action="store_true", help="keep the base that is there")
    options = parser.parse_args()
    base, adapters = options.out / "base", options.out / "adapters"
    if not options.only_adapters:
        shutil.rmtree(base, ignore_errors=True)
        train_base(base)
    for style in SHIPPED:
        shutil.rmtree(adapters / style.name, ignore_errors=True)
        train_adapter(base, style, adapters / style.name)


if __name__ == "__main__":
    main()
