"""Encoders, which turn a text into a vector, and one that needs nothing but the text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal, Protocol

import torch
from torch import Tensor

from adaptrix.extend import refuse

#: which states of a model stand for a text: its last token's, its first one's, or the mean of all
Pooling = Literal["last", "cls", "mean"]

_SIZES = (3, 4, 5)
_WORD = re.compile(r"\w+")


class Encoder(Protocol):
    """Embeds a text. ``name`` says which it is, for provenance; ``width`` is E."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def __call__(self, text: str, /) -> Tensor:
        """``[E]`` of any length: whoever asks normalises."""


class HashedNgrams:
    """Words and their character n-grams, each counted in a place and with a sign that its hash gives.

    The baseline: it knows spelling and nothing of meaning. The hash is blake2b, the same in every process.
    """

    def __init__(self, width: int) -> None:
        self.name, self.width = "hashed", width

    def __call__(self, text: str, /) -> Tensor:
        counts = [0.0] * self.width
        for gram in _grams(text):
            number = int.from_bytes(blake2b(gram.encode(), digest_size=8).digest(), "big")
            counts[(number >> 1) % self.width] += 1.0 if number & 1 else -1.0
        return torch.tensor(counts)


def _grams(text: str) -> Iterator[str]:
    """Words and n-grams of a text; of one without a word, the text itself."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(plain) or [plain]
    for word in words:
        yield word
        bounded = f"<{word}>"
        for size in _SIZES:
            yield from (bounded[start : start + size] for start in range(len(bounded) - size + 1))


def require_width(width: int, wanted: int, name: str) -> None:
    """Raises :class:`RefusedError` for an encoder of another width than the hypernetwork reads."""
    if width != wanted:
        remedy = "Name the encoder that the checkpoint was trained with, by --encoder."
        raise refuse("encoder", name, f"its embeddings are {width} wide", f"{wanted}", remedy)


def scaled(embedding: Tensor, encoder: Encoder) -> Tensor:
    """normalise(e)·√E in fp32, as the hypernetwork was trained to read it. Raises :class:`RefusedError`."""
    if embedding.shape != (encoder.width,):
        found = f"an embedding of shape {list(embedding.shape)}"
        raise refuse("encoder", encoder.name, found, f"[{encoder.width}]")
    vector = embedding.detach().float().cpu()
    length = vector.norm()
    if not torch.isfinite(length) or not length:
        found = "it has no direction" if not length else "it is not finite"
        raise refuse("encoder", encoder.name, f"{found}, the embedding of this text", "finite numbers, not all zero")
    return vector / length * encoder.width**0.5
