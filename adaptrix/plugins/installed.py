"""The plugins that are installed and may load, found without importing ``importlib.metadata`` where possible."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "adaptrix"


def allowed() -> frozenset[str] | None:
    """The names in ``ADAPTRIX_PLUGINS``, none where it is empty; None, for all, where it is not set."""
    named = os.environ.get("ADAPTRIX_PLUGINS")
    return None if named is None else frozenset(filter(None, map(str.strip, named.split(","))))


def entry_points() -> tuple[EntryPoint, ...]:
    """The entry points of plugins, none where none may load."""
    return () if allowed() == frozenset() else every_entry_point()


def every_entry_point() -> tuple[EntryPoint, ...]:
    """The entry points of all installed plugins, in no particular order.

    ``importlib.metadata`` costs as much as all else that a short command imports, so it is asked only
    where some distribution on the path mentions the group.
    """
    if not any(map(_mentions_group, sys.path)):
        return ()
    from importlib import metadata

    return tuple(metadata.entry_points(group=GROUP))


def _mentions_group(folder: str) -> bool:
    try:
        names = os.listdir(folder or ".")
    except NotADirectoryError:
        return True  # a zip archive: only importlib.metadata can tell
    except OSError:
        return False
    wanted = [name for name in names if name.endswith((".dist-info", ".egg-info"))]
    return any(f"[{GROUP}]".encode() in _read(os.path.join(folder, name, "entry_points.txt")) for name in wanted)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
