"""Prompts: what one may be, and its form before it is embedded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from adaptrix import Problem, RefusedError, UsageError

#: an encoder's own limit is far below; this one keeps a file given by mistake from being tokenised
MAX_CHARACTERS = 32_768
_MAX_FILE = 64 << 20
_SHOWN = 40


def require_prompts(texts: Iterable[str]) -> list[str]:
    """The prompts as they are embedded, in their order, each once. Raises with what is wrong with any of them."""
    given = list(texts)
    if not given:
        raise UsageError(Problem("prompt", "prompts", "there is none", "a sentence that describes a task"))
    problems = [problem for text in given if (problem := problem_of(text)) is not None]
    if problems:
        raise RefusedError(problems)
    return list(dict.fromkeys(map(formatted, given)))


def formatted(text: str) -> str:
    """A prompt without space around it, and with a full stop where it ends in a letter, as the published code does."""
    stripped = text.strip()
    return f"{stripped}." if stripped[-1:].isalpha() else stripped


def adapter_name(text: str) -> str:
    """A name that a file can bear: the prompt's first words, and a few digits that tell it from its like."""
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:48].strip("-_")
    return f"{words or 'adapter'}-{sha256(text.encode()).hexdigest()[:8]}"


def named(text: str) -> str:
    """The name of a prompt in messages: its beginning, as it can be printed anywhere."""
    return f"prompt {text[:_SHOWN]!a}"


def read_prompts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank. Raises :class:`AdaptrixError`."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_FILE:
            found = f"it has {size} bytes" if path.is_file() else "it is no regular file"
            raise UsageError(Problem("prompt", str(path), found, f"a text file of at most {_MAX_FILE} bytes"))
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(Problem("prompt", str(path), f"it cannot be read: {error.strerror or error}")) from None
    except UnicodeDecodeError as error:
        raise RefusedError(
            Problem("prompt", str(path), f"it is not UTF-8: {error.reason}", "a prompt a line")
        ) from None
    return [line for line in text.split("\n") if line.strip()]


def problem_of(text: object) -> Problem | None:
    """The problem of a value that is no prompt; None for a prompt."""
    if not isinstance(text, str):
        return Problem("prompt", "prompt", f"a {type(text).__name__}", "a sentence, as text")
    where = named(text)
    if not text.strip():
        return Problem("prompt", where, "there is nothing in it", "a sentence that describes a task")
    if len(text) > MAX_CHARACTERS:
        return Problem("prompt", where, f"it has {len(text)} characters", f"at most {MAX_CHARACTERS}")
    odd = sorted({char for char in text if unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\n\r"})
    if odd:
        names = ", ".join(f"U+{ord(char):04X}" for char in odd[:4])
        return Problem("prompt", where, f"it has control characters ({names})", "text as a person writes it")
    return None
