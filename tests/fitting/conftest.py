"""A base, an adapter and a text, and what a fit makes of them."""

import random

import pytest

from tests.helpers.attached import saved
from tests.helpers.families import tiny_model
from tests.helpers.fits import ALL, LETTERS, fit, tokenizer


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """A base with its tokenizer, an adapter over all its layers with ranks of many kinds, and a text."""
    folder = tmp_path_factory.mktemp("fit")
    model = tiny_model("llama", seed=3)
    model.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    options = {"target_modules": ALL, "rank_pattern": {"q_proj": 2, "down_proj": 5}, "lora_dropout": 0.3}
    saved(model, folder / "lora", rank=4, **options)
    rng = random.Random(5)
    (folder / "text.txt").write_text("".join(rng.choices(LETTERS, k=4000)))
    return folder


@pytest.fixture(scope="package")
def fitted(place):
    return fit(place, place / "whole.adaptrix.safetensors")
