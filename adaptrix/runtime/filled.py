"""The content of a cache, as far as activated LoRAs ask: which tokens, and from where on each of them has acted.

It lies on the cache itself, so that it goes along where a cache is copied (``copy.deepcopy`` of a prefix that is read
once for many prompts), and is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adaptrix.runtime.selection import Selection

#: later than any token: the start of what has not been invoked
NEVER = 1 << 62
_NAME = "adaptrix_filled"


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """``size`` tokens in each of ``rows`` rows, all read by one session.

    ``ground``: the key of what acted on all of them, activated LoRAs left out. ``starts``: for each of these, by
    version and weight, the column from which it has acted, one a row. ``tokens`` ``[rows, size]``: their ids, None
    where they are not known. ``keys``: those of the first layer then; others show that the cache was changed since.
    """

    rows: int
    size: int
    ground: tuple[Any, ...]
    tokens: Tensor | None
    starts: Mapping[tuple[int, float], tuple[int, ...]] = field(default_factory=dict)
    keys: Tensor | None = None

    def cropped(self, size: int) -> Filled:
        """Its first ``size`` tokens."""
        tokens = None if self.tokens is None else self.tokens[:, :size]
        starts = {one: tuple(NEVER if s >= size else s for s in found) for one, found in self.starts.items()}
        return replace(self, size=size, tokens=tokens, starts=starts)

    def changed(self, change: Callable[[Tensor], Tensor]) -> Filled:
        """The same with its rows changed, by a function of a tensor that has rows first."""
        tokens = None if self.tokens is None else change(self.tokens)
        device = "cpu" if self.tokens is None else self.tokens.device
        starts = {one: tuple(change(torch.tensor(found, device=device)).tolist()) for one, found in self.starts.items()}
        rows = len(change(torch.arange(self.rows, device=device)))
        return replace(self, rows=rows, tokens=tokens, starts=starts)

    def goes_on(self, selection: Selection) -> bool:
        """True where all that was read is what it would have been under ``selection``, invocations apart."""
        present = {term.key for term in selection.activated}
        idle = all(min(starts) == NEVER for one, starts in self.starts.items() if one not in present)
        return idle and self.ground == selection.ground


def noted(cache: object, session: int) -> Filled | None:
    """The last note of a session on a cache, if there is one."""
    found: Mapping[int, Filled] = getattr(cache, _NAME, {})
    return found.get(session)


def note(cache: object, session: int, filled: Filled | None) -> None:
    """Notes what a cache holds; None where that is not known."""
    others = {one: kept for one, kept in getattr(cache, _NAME, {}).items() if one != session}
    vars(cache)[_NAME] = others if filled is None else {**others, session: filled}


def only(session: int, filled: Filled | None) -> dict[str, Mapping[int, Filled]]:
    """The attribute of a cache on which one session alone has noted something, or none has."""
    return {_NAME: {} if filled is None else {session: filled}}


def length_of(cache: object) -> int | None:
    """The number of tokens in a cache, 0 for none; None for one that does not count tokens."""
    if cache is None:
        return 0
    count = getattr(cache, "get_seq_length", None)
    return None if count is None else int(count())


def keys_of(cache: object) -> Tensor | None:
    """The keys of a cache's first layer; None where these would not show that its rows were moved."""
    for layer in getattr(cache, "layers", None) or ():
        if "Quantized" in type(layer).__name__:  # their rows are moved when they are next read
            return None
        keys = getattr(layer, "keys", None)
        if isinstance(keys, Tensor):
            return keys
    return None
