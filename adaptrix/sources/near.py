"""Paths of this disk that a mistyped one may have meant."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from adaptrix.wording import either, shown

_MOST = 10_000  # entries of a folder that are compared


def nearest_paths(uri: str) -> list[str]:
    """Paths like ``uri`` but for the first part of it that is not there; none where no name is like it.

    Errors of the disk count as nothing there: this only helps a message along.
    """
    path = Path(uri)
    below: list[str] = []
    while not os.path.lexists(path) and path != path.parent:
        if os.path.isdir(path.parent):
            found = (str(path.with_name(name).joinpath(*below)) for name in _alike(path))
            return [near for near in found if not below or os.path.lexists(near)]
        below.insert(0, path.name)
        path = path.parent
    return []


def meant(uri: str) -> str:
    """A question for the remedy of a problem: ``Did you mean ./my-lora?``; nothing where no path is like it."""
    near = nearest_paths(uri)
    return f"Did you mean {either(map(shown, near))}?" if near else ""


def _alike(path: Path) -> list[str]:
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST), strict=False)]
    except OSError:
        return []
    return get_close_matches(path.name, names, n=3)
