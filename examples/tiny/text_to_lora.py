"""Trains the tiny hypernetwork anew, on one thread and from a seed, in about two minutes, and measures it.

    OMP_NUM_THREADS=1 python -m examples.tiny.text_to_lora [--measure] [--out examples/tiny/base/text-to-lora]

It turns a sentence, as hashed n-grams, into a LoRA for the tiny base: each of :data:`VOICES` is a task, its
descriptions are its sentences, and its examples are continuations of texts in its style, of which only the continuation
counts. Measured is the loss on continuations of texts that no training saw, under the adapter of every sentence that
was kept from training; ``--measure`` does that alone, with the hypernetwork that is there.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from adaptrix_text_to_lora import HashedNgrams, Hypernetwork, TextToLoRA, shape_for
from adaptrix_text_to_lora.encoders import scaled
from adaptrix_text_to_lora.prompts import formatted
from adaptrix_text_to_lora.training import Objective, Recipe, State, Task, fine_tune
from adaptrix_text_to_lora.training.loop import Watch
from adaptrix_text_to_lora.training.published import CheckpointRecord, write_checkpoint
from torch import Tensor
from torch.nn.functional import pad
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import adaptrix
from adaptrix import Adapter
from examples.tiny.descriptions import VOICES, Voice
from examples.tiny.styles import Style
from examples.tiny.train import pairs

SEED = 5
TINY = Path(__file__).parent
BASE, OUT = TINY / "base", TINY / "base" / "text-to-lora"
ENCODER = HashedNgrams(512)
ROLES, RANK, ALPHA, LATENT, HEAD_IN = ("q", "v", "o", "down"), 8, 16, 64, 96
RECIPE = Recipe(steps=800, rate=2e-3, tasks=8, rows=1, warmup=0.1, seed=SEED)
OBJECTIVE = Objective(scale=ALPHA / RANK**0.5, smoothing=0.0)
BATCHES = 16  # of twelve examples, for every voice
#: whose loss under which adapter, None for the base alone
Loss = Callable[[Style, Adapter | None], float]


def examples(tokenizer: PreTrainedTokenizerFast, style: Style, seed: str, batches: int) -> tuple[Tensor, Tensor]:
    """Continuations in a style: ids and labels ``[examples, tokens]``, padded on the right."""
    drawn = list(islice(pairs(tokenizer, style, random.Random(seed)), batches))
    width = max(ids.shape[1] for ids, _ in drawn)
    widened = ((pad(ids, (0, width - ids.shape[1])), pad(labels, (0, width - ids.shape[1]), value=-100))
               for ids, labels in drawn)  # fmt: skip
    ids, labels = zip(*widened, strict=True)
    return torch.cat(ids), torch.cat(labels)


def task(tokenizer: PreTrainedTokenizerFast, voice: Voice) -> Task:
    embeddings = torch.stack([scaled(ENCODER(formatted(text)), ENCODER) for text in voice.trained])
    return Task(embeddings, *examples(tokenizer, voice.style, f"{SEED} {voice.style.name}", BATCHES))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Hypernetwork:
    """A hypernetwork of a million parameters, fine-tuned through the base."""
    torch.manual_seed(SEED)
    shape = shape_for(str(BASE), "L", ENCODER.width, roles=ROLES, rank=RANK, latent=LATENT)
    hypernetwork = Hypernetwork(replace(shape, head_in=HEAD_IN))
    tasks = [task(tokenizer, voice) for voice in VOICES]
    fine_tune(hypernetwork, model, tasks, OBJECTIVE, RECIPE, watch=Watch(on_state=_said))
    return hypernetwork.eval()


def _said(state: State) -> None:
    print(f"step {state.step:4} of {RECIPE.steps}  loss {float(state.curve[-20:, 0].mean()):.3f}", flush=True)


def save(hypernetwork: Hypernetwork, out: Path) -> None:
    """In SakanaAI's format, the numbers rounded to fp16."""
    args = {"steps": RECIPE.steps, "learning_rate": RECIPE.rate, "seed": SEED}
    record = CheckpointRecord(ALPHA, rslora=True, base="examples/tiny/base", encoder=ENCODER.name, args=args)
    write_checkpoint(out, hypernetwork, record, dtype=torch.float16, force=True)


def losses(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, session: adaptrix.Session) -> Loss:
    """The mean loss a token on continuations in a style that no training saw, as a function."""
    held = {voice.style.name: examples(tokenizer, voice.style, f"held out {voice.style.name}", 1) for voice in VOICES}

    @torch.no_grad()
    def loss(style: Style, adapter: Adapter | None) -> float:
        ids, labels = held[style.name]
        if adapter is None:
            return float(model(input_ids=ids, labels=labels).loss)
        session.load("it", adapter)
        with session.use("it"):
            found = float(model(input_ids=ids, labels=labels).loss)
        session.unload("it")
        return found

    return loss


def measured(loss: Loss, generator: TextToLoRA) -> Iterator[tuple[str, float, list[float], list[float]]]:
    """For every style the base's loss, that of its own held-out sentences, and that of one of every other style."""
    for voice in VOICES:
        own = [loss(voice.style, generator.generate(text)) for text in voice.held_out]
        others = [other.held_out[0] for other in VOICES if other is not voice]
        mismatched = [loss(voice.style, generator.generate(text)) for text in others]
        yield voice.style.name, loss(voice.style, None), own, mismatched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--measure", action="store_true", help="measure the hypernetwork that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    if not options.measure:
        save(train(model, tokenizer), options.out)
    print("| style | base | its own sentences, mean | the worst of them | other styles' sentences, the best of 8 |")
    print("| --- | --- | --- | --- | --- |")
    with adaptrix.attach(model, {}) as session:
        loss, generator = losses(model, tokenizer, session), TextToLoRA(options.out, BASE)
        for name, base, own, others in measured(loss, generator):
            print(f"| {name} | {base:.2f} | {mean(own):.2f} | {max(own):.2f} | {min(others):.2f} |", flush=True)


if __name__ == "__main__":
    main()
