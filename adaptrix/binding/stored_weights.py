"""Weights that peft's ``target_parameters`` names: their factors describe the change to the tensor as it is stored."""

from __future__ import annotations

from adaptrix.adapter import Adapter
from adaptrix.architecture.patterns import suffix_match


def stored_weights(adapter: Adapter) -> list[str]:
    """The names in ``target_parameters`` that are of a module's weight."""
    names = adapter.provenance.config.get("target_parameters") or ()
    return [name for name in names if name.rpartition(".")[2] == "weight"]


def is_stored(adapter: Adapter, path: str) -> bool:
    """True where the delta of a module's weight is of the tensor as it is stored."""
    return any(suffix_match(name, f"{path}.weight") for name in stored_weights(adapter))
