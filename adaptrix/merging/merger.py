"""Merged models, written from a merge plan: everything is checked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptrix import atomic
from adaptrix.base.checkpoint import TOKENIZER, matching
from adaptrix.base.file_kinds import INDEX
from adaptrix.destination import is_folder, output_path, require_apart
from adaptrix.errors import Problem
from adaptrix.merging.agreement import Agreement
from adaptrix.merging.draft import MergePlan
from adaptrix.merging.model_files import RECORD, as_json, record, write_model
from adaptrix.merging.options import ENDING, MergeOptions
from adaptrix.planning.plan import Plan
from adaptrix.progress import Display, quiet


@dataclass(frozen=True)
class MergedModel:
    """A merged model that was written.

    ``path``: its folder; ``plan``: of the adapter; ``changed`` of the base's ``tensors`` tensors are new;
    ``nbytes``: of all tensors; ``problems``: warnings and notes; ``agreement``: with the attached adapter,
    None unless verified.
    """

    path: Path
    plan: Plan
    changed: int
    tensors: int
    nbytes: int
    problems: tuple[Problem, ...]
    agreement: Agreement | None = None


def write(merge: MergePlan, out: str | None, options: MergeOptions, display: Display = quiet) -> MergedModel:
    """Writes the merged model; raises :class:`AdaptrixError` and then leaves nothing behind."""
    path = output_path(out, merge.plan.bound.adapter.name, ENDING)
    assert path is not None  # there is a name
    for files in (merge.bundle.files.values() if merge.bundle else (), merge.base.files()):
        require_apart(path, list(files))
    tokenizer = _own_tokenizer(merge) if merge.vocabulary is not None else {}
    carried = {**merge.base.carried(), **tokenizer}
    names = {*carried, *merge.base.shards, RECORD, *([INDEX] if merge.base.index else [])}
    atomic.require_free(path, force=options.force, holds=names, makes=is_folder(out))
    with atomic.output(path, force=options.force, holds=names, makes=is_folder(out)) as work:
        check = _check(merge, options, path.parent)
        work.mkdir()
        try:
            total = write_model(merge, work, options.dtype, display)
        except Exception:  # an adapter that changed is the truer reason, whatever its numbers led to
            _require_unchanged(merge)
            raise
        _require_unchanged(merge)
        for name, file in carried.items():
            if name != "config.json":
                shutil.copyfile(file, work / name)
        (work / RECORD).write_text(as_json(record(merge.plan, merge.base, options.dtype, options.qlora_base)))
        agreement = check(work) if check else None
    said = (*merge.problems, *_tokenizer_note(merge, tokenizer))
    return MergedModel(path, merge.plan, len(merge.changes), len(merge.base.tensors()), total, said, agreement)


def _require_unchanged(merge: MergePlan) -> None:
    if merge.bundle is not None:
        merge.bundle.require_unchanged()


def _check(merge: MergePlan, options: MergeOptions, room: Path) -> Callable[[Path], Agreement] | None:
    if not options.verify:
        return None
    from adaptrix.merging.verify import verifier

    return verifier(merge, options, room)


def _own_tokenizer(merge: MergePlan) -> dict[str, Path]:
    """The tokenizer beside the adapter, as one with added tokens has; none for an adapter of a single file."""
    files = merge.bundle.files.values() if merge.bundle else ()
    homes = {file.parent for file in files} if len(files) > 1 else set()
    return {name: file for home in homes for name, file in matching(home, TOKENIZER).items()}


def _tokenizer_note(merge: MergePlan, tokenizer: Mapping[str, Path]) -> Iterator[Problem]:
    if merge.vocabulary is not None and not tokenizer:
        found = f"the vocabulary has {merge.vocabulary} tokens now, and the tokenizer is the base's"
        remedy = "Save the tokenizer that the adapter was trained with into the merged folder."
        yield Problem("tokenizer-missing", merge.plan.bound.adapter.name, found, remedy=remedy, severity="warning")
