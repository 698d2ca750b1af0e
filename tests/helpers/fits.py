"""Fits of a small adapter to a text of letters."""

import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import adaptrix

LETTERS = "abcdefghijklmnopqrstuvwxyz ,."
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
STEPS = 16


def tokenizer():
    """A letter a token."""
    vocabulary = {"<unk>": 0, **{letter: number + 3 for number, letter in enumerate(LETTERS)}}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def fit(place, out, **options):
    asked = {"layers": "fit:2", "text": place / "text.txt", "base": place / "base", "steps": STEPS, **options}
    return adaptrix.convert(place / "lora", out, **asked)
