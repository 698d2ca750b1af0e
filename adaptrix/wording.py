"""Names and amounts as messages show them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 100  # characters of a word that is compared with known ones
_UNITS = ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB"))


def shown(name: str) -> str:
    """A name as it can be printed: escaped if it has control characters or undecodable bytes."""
    return name if name.isprintable() else ascii(name)


def amount(size: int) -> str:
    """A number of bytes for people: ``13.5 GB``."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def some(names: Iterable[str], most: int = 10) -> str:
    """The first few names, and how many more there are."""
    listed = [shown(name) for name in names]
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def either(choices: Iterable[str]) -> str:
    """Words of which one is to be chosen: ``fp32, fp16 or bf16``."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for a word that may be misspelt: ``Did you mean middle?``; nothing where no known one is like it."""
    near = get_close_matches(word[:_LONGEST].lower(), dict.fromkeys(known), 3)
    return f"Did you mean {either(near)}?" if near else ""


def commands(addresses: Iterable[str], most: int = 20) -> str:
    """A command that converts each address, one on a line."""
    listed = [f"\n    adaptrix convert {shlex.quote(address)}" for address in addresses]
    more = len(listed) - most
    return "".join(listed[:most]) + (f"\n    … and {more} more" if more > 0 else "")


def ranges(layers: list[int]) -> str:
    """Sorted layers in short: ``0-3,8``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
