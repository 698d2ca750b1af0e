"""The text to measure on: read, turned into the tokens of the base, and cut into windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptrix.errors import UsageError, refuse
from adaptrix.measuring.options import require_file, step_problems


@dataclass(frozen=True, slots=True)
class Text:
    """A text: the path of its file, its content, and the SHA-256 of the file."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text's tokens ``[n]``. ``predicted``: the bytes of UTF-8 of all tokens but the first; None where only
    tokens are known."""

    ids: Tensor
    predicted: int | None = None


def read_text(path: Path) -> Text:
    """The text of a file. Raises :class:`UsageError` where there is none, :class:`RefusedError` unless it is UTF-8."""
    require_file(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "Of another encoding: iconv -f … -t UTF-8."
        raise refuse("text-invalid", path, f"byte {error.start} is no UTF-8", "a text in UTF-8", remedy) from None
    if "\0" in text:
        raise refuse("text-invalid", path, f"a zero byte at {content.index(0)}: a binary file", "a text in UTF-8")
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


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive tokens ``[n]``, read in one pass. The last ``counted`` of them are predicted; those before count in
    an earlier window, and are context here."""

    tokens: Tensor
    counted: int


def windows(tokens: Tensor | Sequence[int], length: int, stride: int | None = None) -> tuple[Window, ...]:
    """Windows of ``length`` tokens, each ``stride`` further on than the one before (by default half a window).

    Every token but the very first counts once, with at least ``length - stride`` tokens before it from the second
    window on. The last window reaches back, so that it is as long as the others; a text shorter than a window is one
    shorter window. Raises :class:`RefusedError` for fewer than 2 tokens, :class:`UsageError` unless
    0 < stride < length.
    """
    text = torch.as_tensor(tokens)
    step = max(1, length // 2) if stride is None else stride
    if problems := step_problems(length, step):
        raise UsageError(problems)
    require_enough(text)
    found: list[Window] = []
    done, total = 1, len(text)
    while done < total:
        stop = min(length if done == 1 else done + step, total)
        found.append(Window(text[max(0, stop - length) : stop], stop - done))
        done = stop
    return tuple(found)


def require_enough(tokens: Tensor, name: str = "text") -> None:
    """Raises :class:`RefusedError` for a text in which nothing can be predicted."""
    if len(tokens) < 2:
        found = f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}"
        raise refuse("text-too-short", name, found, "at least 2: the second is the first that is predicted")
