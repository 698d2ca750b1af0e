"""The list of the kinds of delta, and what is done where only some of them can go.

A new kind is a class with the answers of :class:`~adaptrix.delta.protocol.Delta`, its name here, and a row in the table
of each floor that has one: ``formats.injection_kinds``, ``merging.drafting`` and ``runtime.kinds``. A floor whose table
has no row for a kind refuses it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from adaptrix.delta.low_rank import LowRank
from adaptrix.delta.parametrised import PARAMETRISATIONS, Parametrised
from adaptrix.delta.protocol import Delta
from adaptrix.delta.scale import Scale
from adaptrix.delta.spectral import Spectral
from adaptrix.errors import Problem, RefusedError, refuse

Key = TypeVar("Key")
Row = TypeVar("Row")
Found = TypeVar("Found", bound=Delta)

#: every kind of delta by its name; the names of one class differ in the tensors that it has
KINDS: Mapping[str, type[Delta]] = MappingProxyType(
    {
        "lora": LowRank,
        "dora": LowRank,
        "spectral": Spectral,
        **dict.fromkeys(PARAMETRISATIONS, Parametrised),
        "scale": Scale,
    }
)


def row(table: Mapping[str, Row], delta: Delta, where: object, doing: str) -> Row:
    """A floor's row for the kind of a delta; ``doing`` says what the floor does: "merging".

    Raises :class:`RefusedError` for a kind that has none.
    """
    if delta.kind not in table:
        found = f"a {delta.kind} delta, a kind that {doing} has no way for"
        raise refuse("kind-unsupported", where, found, one_of(table))
    return table[delta.kind]


def one_of(names: Mapping[str, object]) -> str:
    """The names of kinds, as messages list them: ``lora, dora or spectral``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def of_class(deltas: Mapping[Key, Delta], wanted: type[Found]) -> dict[Key, Found]:
    """Those deltas that are of one class, in their order."""
    return {key: delta for key, delta in deltas.items() if isinstance(delta, wanted)}


def not_low_rank(deltas: Mapping[Key, Delta]) -> dict[Key, Delta]:
    """Those deltas that are no product of two factors."""
    return {key: delta for key, delta in deltas.items() if not isinstance(delta, LowRank)}


def require_low_rank(deltas: Mapping[Key, Delta], name: str, doing: str) -> dict[Key, LowRank]:
    """The deltas as LoRAs: themselves, or exactly what a parametrised one is.

    Raises :class:`RefusedError` with every one that is neither. ``name`` is the adapter's, ``doing`` what cannot be
    done with others: "a sum of adapters".
    """
    plain = {key: delta.low_rank()[0] if isinstance(delta, Parametrised) else delta for key, delta in deltas.items()}
    if odd := not_low_rank(plain):
        spectral = "`adaptrix convert SRC --base MODEL --to peft` makes a LoRA of it."
        other = "Merge it into its base, and `adaptrix extract` a LoRA from the result."
        said = f"and {doing} takes low-rank ones"
        raise RefusedError(
            Problem(
                "kind-unsupported",
                f"{name} {key}",
                f"a {delta.kind} delta, {said}",
                "a LoRA",
                spectral if delta.needs_base else other,
            )
            for key, delta in odd.items()
        )
    return of_class(plain, LowRank)
