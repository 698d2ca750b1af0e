"""Adapters written into folders that hold other files: those of Trainer's checkpoints."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from adaptrix import atomic
from adaptrix.errors import Problem, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.planning.plan import Plan
from adaptrix.planning.prune import pruned


def save_into(pipeline: Pipeline, plan: Plan, folder: Path) -> None:
    """Puts what acts of a plan into a folder, as a PEFT checkpoint: each file takes the place of one of its name.

    The folder is made where it is missing. Raises :class:`AdaptrixError`, and then leaves the files that were there.
    """
    with atomic.refusing(folder):
        _make(folder)
        with TemporaryDirectory(prefix=".adaptrix-", dir=folder) as work:
            done = pipeline.publish(pruned(plan), Path(work) / "adapter", Options(to="peft"))
            for file in sorted(done.path.iterdir(), reverse=True):  # the tensors before the config that promises them
                file.replace(folder / file.name)


def _make(folder: Path) -> None:
    """Makes a folder where it is missing. Raises :class:`UsageError` where a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        found, remedy = "a file is in the way", "Name a folder, or one that can be made."
        raise UsageError(Problem("output-invalid", str(folder), found, "a folder", remedy)) from None
