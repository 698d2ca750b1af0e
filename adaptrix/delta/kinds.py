"""The kinds of deltas, and what is said where only one of them can go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from adaptrix.delta.low_rank import LowRank
from adaptrix.delta.spectral import Spectral
from adaptrix.errors import Problem, RefusedError

Delta = LowRank | Spectral
Key = TypeVar("Key")


def require_low_rank(deltas: Mapping[Key, Delta], name: str, doing: str) -> dict[Key, LowRank]:
    """The deltas themselves; raises :class:`RefusedError` with every one that is no product of two factors.

    ``name`` is the adapter's, ``doing`` what cannot be done with others: "a sum of adapters".
    """
    found = {key: delta for key, delta in deltas.items() if isinstance(delta, LowRank)}
    if odd := [key for key in deltas if key not in found]:
        remedy = "`adaptrix convert SRC --base MODEL --to peft` makes a LoRA of it."
        said = f"a spectral delta, and {doing} takes low-rank ones"
        raise RefusedError(Problem("spectral", f"{name} {key}", said, "a LoRA", remedy) for key in odd)
    return found
