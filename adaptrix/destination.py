"""Paths of outputs: where one goes by default, where none may go, and what a format cannot hold."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from adaptrix.errors import Problem, UsageError
from adaptrix.feature_names import FEATURES
from adaptrix.options import Options
from adaptrix.planning.features import needed, spare, without_spare
from adaptrix.planning.plan import Plan
from adaptrix.records import Format
from adaptrix.wording import some


def destination(out: str | None, name: str | None, form: Format) -> Path | None:
    """The path of an adapter in a format: ``my-lora.adaptrix.safetensors`` for one of one file, else ``my-lora-peft``.

    Rules are those of :func:`output_path`.
    """
    return output_path(out, name, form.suffix or f"-{form.name}", one_file=bool(form.suffix))


def output_path(out: str | None, name: str | None, ending: str, *, one_file: bool = False) -> Path | None:
    """The path to write: ``out``, or the adapter's name in ``out`` if that is a folder, or in the current one.

    - ``out``: a folder to write into if it ends in a slash, which is made where it is missing, and for an output of one
      file if there is such a folder.
    - ``name``: the adapter's, None where it is not known yet; then what depends on it is None.
    - ``ending``: what follows the name.
    """
    if out is None:
        folder = Path()
    elif is_folder(out) or (one_file and Path(out).is_dir()):
        folder = Path(out)
    else:
        return Path(out)
    return None if name is None else folder / (_safe(name) + ending)


def is_folder(out: str | os.PathLike[str] | None) -> bool:
    """True for a path that ends in a slash: a folder to write into, which is made where it is missing."""
    return out is not None and os.fspath(out).endswith(("/", os.sep))


def require_folder(out: str) -> Path:
    """The folder ``out`` for several outputs; a :class:`UsageError` where there is none and no slash asks for one."""
    if not is_folder(out) and not Path(out).is_dir():
        found, remedy = "there is no such folder", f"Make it first: mkdir {shlex.quote(out)}, or name it {out}/"
        raise UsageError(Problem("output-invalid", out, found, remedy=remedy))
    return Path(out)


def _safe(name: str) -> str:
    """A name that is no path, no hidden file and no option of a command."""
    return re.sub(r"[^\w.+@-]", "-", name).lstrip(".-") or "adapter"


def require_apart(path: Path, source: Collection[Path]) -> None:
    """Raises :class:`UsageError` where an output would be its own source, in the source's folder, or around it.

    The folder of a source of several files is the source; that of a single file may hold others.
    """
    above = _real(path).parent
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
    above = _real(path).parent
    for other, why in taken.items():
        if same(path, other) or (other.is_dir() and any(same(other, folder) for folder in (above, *above.parents))):
            raise UsageError(Problem("output-taken", str(path), why, remedy="Give each output a --name of its own."))


def require_carried(plan: Plan, form: Format, options: Options, later: Collection[str] = ()) -> None:
    """Raises :class:`UsageError` with everything in a plan that a format cannot hold, one problem a feature.

    ``later``: features that are not asked for yet.
    """
    lacking = needed(plan, [name for name in FEATURES if name not in form.carries and name not in later])
    if lacking:
        found = [_idle_or_changed(plan, options)] if "plan" in lacking else []
        raise UsageError([*found, *(_loss(name, where, form) for name, where in lacking.items() if name != "plan")])


def sparing(plan: Plan, form: Format) -> tuple[Plan, tuple[Problem, ...]]:
    """The plan without the extras that a format has no place for and that a model of this base does without, and a
    warning where there are any."""
    if "extras" in form.carries or not (keys := spare(plan)):
        return plan, ()
    found = f"{len(keys)} tensors are left out, which are the base's own or for training alone: {some(keys, 3)}"
    return without_spare(plan), (Problem("left-out", plan.bound.adapter.name, found, severity="warning"),)


def _loss(feature: str, where: Sequence[str], form: Format) -> Problem:
    found = f"it cannot hold {FEATURES[feature]} ({some(where, 3)})"
    remedy = "Write an injection file, which holds everything."
    if feature in ("mixed_scale", "mixed_alpha"):
        remedy = f"A scale goes into B where that rounds nothing, and rounded in fp32: add --dtype fp32. {remedy}"
    return Problem("format-loss", f"to {form.name}", found, f"a format that carries {feature}", remedy)


def _idle_or_changed(plan: Plan, options: Options) -> Problem:
    """The problem of a format that cannot hold what a plan leaves out or replaces."""
    asked = {"--redistribute": options.redistribute != "none", "--rank": options.rank is not None}
    by = " and ".join(option for option, given in asked.items() if given)
    said = [f"{plan.idle} of {len(plan.bound.deltas)} deltas are outside the plan {plan.policy}"] if plan.idle else []
    said += [f"{by or 'the plan'} changes {len(plan.overrides)} deltas"] if plan.overrides else []
    said += [f"the plan {plan.policy} has gains"] if any(gain != 1.0 for gain in plan.gains.values()) else []
    remedy = f"The format {options.to} cannot hold that: add --prune to lose what is left out or replaced"
    remedy += ", or choose --layers all." if plan.idle else "."
    return Problem("format-loss", f"to {options.to}", "; ".join(said), remedy=remedy)


def no_place_for_fit(options: Options) -> UsageError:
    """The same error, before a plan is fitted."""
    remedy = "Add --prune to keep nothing but what is fitted, or write an injection file."
    found = "the format cannot hold what the plan leaves out or replaces"
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


def config_files(base: str | None) -> dict[Path, str]:
    """The file of a base on this disk, which no output takes the place of."""
    return {} if base is None else {Path(config_of(base)): "this is the config of the base"}


def config_of(base: str) -> str:
    """The name of a base's config in messages."""
    return base if base.endswith(".json") else f"{base.rstrip('/')}/config.json"
