"""Files that are no plain ones: what each kind is called, and where a folder is that is being replaced."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import MappingProxyType

#: the kind of a mode -> its name in messages
SPECIAL_FILES = MappingProxyType(
    {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
)
_LONGEST = 200  # bytes: no disk allows more than 255 to a name


def old_folder(path: Path) -> Path:
    """The name of the folder ``path`` while another takes its place on a system that cannot do this in one step."""
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    return path.with_name(f".{name}.adaptrix-old")
