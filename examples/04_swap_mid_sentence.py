"""One tiny model, three voices: converted, attached, and changed in the middle of a sentence.

The model and its adapters lie in examples/tiny; examples/tiny/train.py trained them.
"""

import tempfile
import textwrap
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import adaptrix

TINY = Path(__file__).parent / "tiny"
#: who speaks, and for how many tokens before another takes over
VOICES = {"pirate": 19, "telegram": 16, "fairy-tale": 31}
PROMPT = "In the evening, the old sailor walked to the"
WIDTH = 96

logging.disable_progress_bar()
torch.set_num_threads(1)
torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
model = AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32).eval()


def told(ids: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    """The ids ``[1, n]`` and what the model says next, the likeliest token each time."""
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **options)


def text(ids: torch.Tensor) -> str:
    """Tokens ``[1, n]`` as they read."""
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def columns(texts: dict[str, str]) -> str:
    """Texts side by side under their names."""
    width = WIDTH // len(texts) - 2
    wrapped = [[name, "-" * width, *textwrap.wrap(said, width)] for name, said in texts.items()]
    rows = zip_longest(*wrapped, fillvalue="")
    return "\n".join("  ".join(cell.ljust(width) for cell in row).rstrip() for row in rows)


def best_ms(work: Callable[[], object]) -> float:
    """The quickest of ten runs, in milliseconds."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def converted(folder: str) -> dict[str, Path]:
    """Each PEFT folder as an injection file, with the plan that a conversion makes unless told otherwise."""
    files = {}
    for voice in VOICES:
        files[voice] = adaptrix.convert(TINY / "adapters" / voice, f"{folder}/", base=TINY / "base")
        plan, first = adaptrix.load(files[voice]).recorded, adaptrix.inspect(files[voice]).roles[0]
        acting = plan.layers["layers"]
        print(f"{files[voice].name}: layers {first.layers}, and plan {plan.policy} is {acting[0]}-{acting[-1]}")
    return files


def swap(session: Any, voice: str, cache: Any, said: torch.Tensor) -> str:
    """Makes the cache what it would be had ``voice`` read all of it; says what that took, and what reading takes."""
    done = session.swap(voice, cache)
    layers = done.kept + done.recomputed
    swapping = best_ms(lambda: session.swap(voice, cache))
    reading = best_ms(lambda: model(said[:, :-1], use_cache=True))
    return f"swap {swapping:.1f} ms, prompt read anew {reading:.1f} ms; {done.kept} of {layers} layers kept"


with tempfile.TemporaryDirectory() as folder, adaptrix.attach(model, converted(folder)) as session:
    prompt = tokenizer(PROMPT, return_tensors="pt").input_ids
    stories = {}
    for voice in (None, *VOICES):
        with session.use(voice):
            stories[voice or "base"] = "…" + text(told(prompt, 100)).removeprefix(PROMPT)
    print(f"\n{PROMPT} …\n\n{columns(stories)}")

    said, cache = prompt, session.new_cache()
    for voice, tokens in VOICES.items():
        taken = swap(session, voice, cache, said) if cache.get_seq_length() else "begins"
        session.activate(voice)
        longer = told(said, tokens, past_key_values=cache)
        print(f"\n{voice}: {taken}\n  … {text(longer[:, said.shape[1] :]).strip()} …")
        said = longer
