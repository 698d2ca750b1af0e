"""Values as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any


def number(value: float | None) -> float | None:
    """A number that JSON can hold; None for NaN and for an infinity."""
    return None if value is None or not isfinite(value) else value


def plain(value: Any) -> Any:
    """A value of dicts, lists and what JSON knows; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return number(value) if isinstance(value, float) else value
