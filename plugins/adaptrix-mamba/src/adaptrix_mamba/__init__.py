"""The Mamba families for Adaptrix: the TOML files beside this module say everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptrix import Architecture, hookimpl
from adaptrix.extend import read_architectures


@hookimpl
def adaptrix_architectures() -> Iterator[Architecture]:
    """Mamba with Falcon Mamba, and Mamba-2."""
    return read_architectures(Path(__file__).parent)
