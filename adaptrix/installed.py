"""Which plugins are installed, found out cheaply."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "adaptrix"


def entry_points() -> tuple[EntryPoint, ...]:
    """The entry points of all installed plugins, in no particular order.

    ``importlib.metadata`` costs as much as all else that a short command imports, so it is asked only
    where some distribution on the path mentions the group.
    """
    if os.environ.get("ADAPTRIX_PLUGINS") == "" or not any(map(_mentions_group, sys.path)):
        return ()
    from importlib import metadata

    return tuple(metadata.entry_points(group=GROUP))


def _mentions_group(folder: str) -> bool:
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return False
    wanted = (".dist-info", ".egg-info")
    return any(f"[{GROUP}]".encode() in _read(os.path.join(folder, n, "entry_points.txt")) for n in names if n.endswith(wanted))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
