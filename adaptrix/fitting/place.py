"""Where the state of a fit lies until it is done."""

from __future__ import annotations

from pathlib import Path


def state_file(out: Path) -> Path:
    """The file beside an output."""
    return out.with_name(f"{out.name}.fitting")
