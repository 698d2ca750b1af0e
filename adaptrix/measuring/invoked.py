"""The windows of a text in which an activated LoRA acts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adaptrix.adapter import Adapter
from adaptrix.errors import Problem, refuse
from adaptrix.measuring.text import Window
from adaptrix.runtime.activation import invocation
from adaptrix.runtime.filled import NEVER
from adaptrix.runtime.invocation import last_start


def invoked(adapter: Adapter, windows: Sequence[Window]) -> Iterator[Problem]:
    """A warning that says in how many windows an activated LoRA acts; nothing about other adapters.

    Raises :class:`RefusedError` where there are none, so that every plan would measure like the base.
    """
    tokens = invocation(adapter)
    if not tokens:
        return
    found = sum(last_start(window.tokens[None], tokens) != (NEVER,) for window in windows)
    if not found:
        said = f"none of {len(windows)} windows holds the invocation tokens {list(tokens)}, so the adapter never acts"
        raise refuse("conditional", adapter.name, said, "a text that invokes it", "Measure on prompts of its own kind.")
    said = f"it acts in {found} of {len(windows)} windows, from its invocation tokens on; the others are the base's"
    yield Problem("conditional", adapter.name, said, severity="warning")
