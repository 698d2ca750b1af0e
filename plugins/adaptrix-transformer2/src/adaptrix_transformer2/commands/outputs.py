"""Checks of outputs: never over what a command reads, nor two to one path."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from adaptrix import Problem, UsageError
from adaptrix.extend import Pipeline, require_apart


def require_no_source(out: str | None, name: str, pipeline: Pipeline, sources: Collection[Path | None]) -> Path:
    """The path of an expert's injection file. Raises :class:`UsageError` where a source is, or a folder around one."""
    path = pipeline.output_path(name, out)
    _require_apart(path, sources)
    return path


def require_other(history: Path, path: Path, sources: Collection[Path | None]) -> None:
    """Raises :class:`UsageError` where the figures would take the place of the expert or of a source."""
    _require_apart(history, sources)
    if os.path.realpath(history) == os.path.realpath(path):
        raise UsageError(Problem("output-taken", str(history), "the expert goes there", "a file of its own"))


def _require_apart(path: Path, sources: Collection[Path | None]) -> None:
    for source in sources:
        if source is not None:
            require_apart(path, [source])
