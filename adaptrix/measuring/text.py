"""The text to measure on: read, and turned into the tokens of the base."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptrix.errors import Problem, UsageError, refuse


@dataclass(frozen=True, slots=True)
class Text:
    """A text by its name, and the digest of its file."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text's tokens ``[n]``. ``predicted``: how many bytes of UTF-8 those but the first stand for; None where there
    are tokens only."""

    ids: Tensor
    predicted: int | None = None


def read_text(path: Path) -> Text:
    """The text of a file. Raises :class:`UsageError` where there is none, :class:`RefusedError` unless it is UTF-8."""
    if not path.is_file():
        found = "this is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(Problem("no-text", str(path), found, "a text file"))
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "Of another encoding: iconv -f … -t UTF-8."
        raise refuse("not-text", path, f"byte {error.start} is no UTF-8", "a text in UTF-8", remedy) from None
    if "\0" in text:
        raise refuse("not-text", path, f"a zero byte at {content.index(0)}: a binary file", "a text in UTF-8")
    if not text:
        raise refuse("text-too-short", path, "it is empty", "a text of at least 2 tokens")
    return Text(str(path), text, sha256(content).hexdigest())


def tokens_of(text: Text, tokenizer: Any) -> Tokens:
    """A text as a tokenizer has it, with the special tokens that it puts before and after."""
    ids = tokenizer(text.content, verbose=False)["input_ids"]
    size = len(text.content.encode())
    if ids and ids[0] not in tokenizer.all_special_ids:  # nothing comes before it that could predict it
        size -= len(tokenizer.decode(ids[:1]).encode())
    return Tokens(torch.tensor(ids, dtype=torch.long), size)
