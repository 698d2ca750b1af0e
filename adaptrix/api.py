"""The public functions. Each takes a uri (a folder, a file, ``owner/name[@revision]``) as the command line does."""

from __future__ import annotations

import warnings
from os import PathLike, fspath
from pathlib import Path

from adaptrix.adapter import Adapter
from adaptrix.inspection import Inspection, summarise
from adaptrix.options import Options
from adaptrix.planning.redistribute import Redistribution
from adaptrix.workflow import Report, Workshop

Uri = str | PathLike[str]


class AdaptrixWarning(UserWarning):
    """What may surprise the caller of :func:`convert`, and is no reason to stop."""


def load(uri: Uri) -> Adapter:
    """The adapter at a uri, sound in itself; whether it fits a model is for :func:`check` to say.

    Raises :class:`AdaptrixError` with every problem found.
    """
    return Workshop().read(fspath(uri)).require_sound()


def check(adapter: Adapter | Uri, base: Uri | None = None, *, allow_nonfinite: bool = False) -> Report:
    """Everything that is wrong with an adapter, alone and on ``base`` (its config's own base by default).

    What is wrong with files, of the adapter or of the base, is in the report. Raises :class:`UsageError` for a
    path or name that is none, :class:`UnreachableError` where the adapter or ``base`` cannot be reached.
    """
    subject = adapter if isinstance(adapter, Adapter) else fspath(adapter)
    return Workshop().check(subject, None if base is None else fspath(base), allow_nonfinite=allow_nonfinite)


def inspect(uri: Adapter | Uri, base: Uri | None = None) -> Inspection:
    """What is in an adapter: provenance, config, shapes by role, ‖ΔW‖ by role and layer.

    Raises :class:`AdaptrixError` where there is nothing to show.
    """
    workshop = Workshop()
    adapter = uri if isinstance(uri, Adapter) else workshop.read(fspath(uri))
    return summarise(workshop.bind(adapter, None if base is None else fspath(base)))


def convert(
    uri: Uri,
    out: Uri | None = None,
    to: str = "injection",
    base: Uri | None = None,
    layers: str | None = None,
    *,
    redistribute: Redistribution = "none",
    rank: int | None = None,
    prune: bool = False,
    dtype: str | None = None,
    name: str | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
) -> Path:
    """Writes the adapter at ``uri`` as an injection file or a PEFT folder and returns its path.

    ``out``: the file or folder to write, or with a ``/`` at its end the folder to write it in; by default
    the adapter's name in the current folder, ``<name>.adaptrix.safetensors`` or ``<name>-peft``.
    ``layers``: ``all``, ``middle``, ``spread:K``, ``energy:K`` or a list such as ``8-23,28``; None is
    ``middle`` for an injection file made from a checkpoint, the file's own plan where one is read, and
    ``all`` for a PEFT folder. ``prune`` drops what the plan leaves out, ``dtype`` (``F32``, ``bf16``,
    ``bfloat16`` …) rounds the deltas; nothing else loses anything. Problems of severity ``warning`` are
    issued as :class:`AdaptrixWarning`. Raises :class:`AdaptrixError` with every problem, and then leaves
    nothing behind.
    """
    options = Options(
        to=to,
        base=None if base is None else fspath(base),
        layers=layers,
        redistribute=redistribute,
        rank=rank,
        prune=prune,
        dtype=dtype,
        name=name,
        force=force,
        allow_nonfinite=allow_nonfinite,
    )
    done = Workshop().convert(fspath(uri), out, options)
    for problem in done.problems:
        if problem.severity == "warning":
            warnings.warn(str(problem), AdaptrixWarning, stacklevel=2)
    return done.path
