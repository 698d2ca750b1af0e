"""Paths of outputs: where one goes by default, where none may go, and what a format cannot hold."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from adaptrix.errors import Problem, UsageError
from adaptrix.options import Options
from adaptrix.planning.plan import Plan
from adaptrix.records import Format


def destination(out: str | None, name: str | None, form: Format) -> Path | None:
    """The path to write: ``out``, or the adapter's name in ``out`` if that is a folder, or in the current one.

    ``out`` is a folder if it ends in a slash, and for a format of one file if there is such a folder. None where
    the path depends on a ``name`` that is not known yet. Raises :class:`UsageError` for ``missing/``.
    """
    if out is None:
        folder = Path()
    elif out.endswith(("/", os.sep)):
        folder = require_folder(out)
    elif form.suffix and Path(out).is_dir():
        folder = Path(out)
    else:
        return Path(out)
    return None if name is None else folder / _default(name, form)


def require_folder(out: str) -> Path:
    """The folder ``out``; a :class:`UsageError` where there is none."""
    if not Path(out).is_dir():
        found, remedy = "there is no such folder", f"Make it first: mkdir {shlex.quote(out)}"
        raise UsageError(Problem("output-invalid", out, found, remedy=remedy))
    return Path(out)


def _default(name: str, form: Format) -> str:
    """The default file name: ``my-lora.adaptrix.safetensors`` for a format of one file, else ``my-lora-peft``."""
    safe = re.sub(r"[^\w.+@-]", "-", name).lstrip(".-") or "adapter"
    return safe + (form.suffix or f"-{form.name}")


def require_apart(path: Path, source: Collection[Path]) -> None:
    """Raises :class:`UsageError` where an output would be its own source, in the source's folder, or around it.

    The folder of a source of several files is the source; that of a single file may hold others.
    """
    above = _real(path.parent)
    for file in source:
        home = _real(file.parent)
        if same(path, file) or (len(source) > 1 and same(path, home)):
            raise _overlap(path, "this is the source itself")
        if any(same(path, folder) for folder in (home, *home.parents)):
            raise _overlap(path, "the source is in this folder")
        if len(source) > 1 and any(same(home, folder) for folder in (above, *above.parents)):
            raise _overlap(path, "this is in the source's own folder")


def require_untaken(path: Path, taken: Mapping[Path, str]) -> None:
    """Raises :class:`UsageError` where this run writes something else to a path, or to a folder around it.

    ``taken``: path -> what is written there.
    """
    above = _real(path.parent)
    for other, why in taken.items():
        if same(path, other) or (other.is_dir() and any(same(other, folder) for folder in (above, *above.parents))):
            raise UsageError(Problem("output-taken", str(path), why, remedy="Give each output a --name of its own."))


def would_lose(plan: Plan, options: Options) -> UsageError:
    """The error for a format that cannot hold what a plan leaves out or replaces."""
    asked = {"--redistribute": options.redistribute != "none", "--rank": options.rank is not None}
    by = " and ".join(option for option, given in asked.items() if given)
    said = [f"{plan.idle} of {len(plan.bound.deltas)} deltas are outside the plan {plan.policy}"] if plan.idle else []
    said += [f"{by} changes {len(plan.overrides)} deltas"] if plan.overrides else []
    remedy = f"A {options.to} folder cannot hold that: add --prune to lose what is left out or replaced"
    remedy += ", or choose --layers all." if plan.idle else "."
    return UsageError(Problem("format-loss", f"to {options.to}", "; ".join(said), remedy=remedy))


def no_place_for_fit(options: Options) -> UsageError:
    """The same error, before a plan is fitted."""
    remedy = "Add --prune to keep nothing but what is fitted, or write an injection file."
    found = f"a {options.to} folder cannot hold what the plan leaves out or replaces"
    return UsageError(Problem("format-loss", f"to {options.to}", found, remedy=remedy))


def same(one: Path, other: Path) -> bool:
    """True where two paths are one file or folder, whatever their names."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _real(folder: Path) -> Path:
    """The folder without links; ``Path.resolve`` raises where they go in a circle."""
    return Path(os.path.realpath(folder))


def _overlap(path: Path, found: str) -> UsageError:
    return UsageError(Problem("output-taken", str(path), found, remedy="Choose another place with -o."))


def state_file(out: Path) -> Path:
    """The file beside an output that keeps the state of a fit."""
    return out.with_name(f"{out.name}.fitting")
