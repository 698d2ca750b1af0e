"""The road from an adapter and a base to a merged model: everything is checked before anything is written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptrix import atomic
from adaptrix.base.checkpoint import TOKENIZER, matching
from adaptrix.base.file_kinds import INDEX
from adaptrix.destination import require_apart, require_folder
from adaptrix.errors import Problem
from adaptrix.merging.agreement import Agreement
from adaptrix.merging.draft import MergePlan
from adaptrix.merging.model_files import RECORD, as_json, record, write_model
from adaptrix.merging.options import MergeOptions
from adaptrix.planning.plan import Plan
from adaptrix.progress import Display, quiet


@dataclass(frozen=True)
class MergedModel:
    """A merge that was done: the folder, the plan, how many of the base's tensors changed, bytes, all that was said."""

    path: Path
    plan: Plan
    changed: int
    tensors: int
    nbytes: int
    problems: tuple[Problem, ...]
    agreement: Agreement | None = None


def write(made: MergePlan, out: str | None, options: MergeOptions, display: Display = quiet) -> MergedModel:
    """Writes the merged model; raises :class:`AdaptrixError` and then leaves nothing behind."""
    path = _destination(out, made.plan.bound.adapter.name)
    for files in (made.bundle.files.values() if made.bundle else (), made.base.files()):
        require_apart(path, list(files))
    tokenizer = _own_tokenizer(made) if made.vocabulary is not None else {}
    carried = {**made.base.carried(), **tokenizer}
    names = {*carried, *made.base.shards, RECORD, *([INDEX] if made.base.index else [])}
    atomic.require_free(path, force=options.force, holds=names)
    with atomic.output(path, force=options.force, holds=names) as work:
        check = _check(made, options, path.parent)
        work.mkdir()
        total = write_model(made, work, options.dtype, display)
        for name, file in carried.items():
            if name != "config.json":
                shutil.copyfile(file, work / name)
        (work / RECORD).write_text(as_json(record(made.plan, made.base, options.dtype, options.qlora_base)))
        agreement = check(work) if check else None
    said = (*made.problems, *_tokenizer_note(made, tokenizer))
    return MergedModel(path, made.plan, len(made.changes), len(made.base.tensors()), total, said, agreement)


def _check(made: MergePlan, options: MergeOptions, room: Path) -> Callable[[Path], Agreement] | None:
    if not options.verify:
        return None
    from adaptrix.merging.verify import verifier

    return verifier(made, options, room)


def _destination(out: str | None, name: str) -> Path:
    """``out``; with a slash at its end the folder to write in, as without it the current one."""
    if out is not None and not out.endswith("/"):
        return Path(out)
    safe = re.sub(r"[^\w.+@-]", "-", name).lstrip(".-") or "adapter"
    return (Path() if out is None else require_folder(out)) / f"{safe}-merged"


def _own_tokenizer(made: MergePlan) -> dict[str, Path]:
    """The tokenizer beside the adapter: one that added tokens has its own. A single file has no folder to itself."""
    files = made.bundle.files.values() if made.bundle else ()
    homes = {file.parent for file in files} if len(files) > 1 else set()
    return {name: file for home in homes for name, file in matching(home, TOKENIZER).items()}


def _tokenizer_note(made: MergePlan, tokenizer: Mapping[str, Path]) -> Iterator[Problem]:
    if made.vocabulary is not None and not tokenizer:
        found = f"the vocabulary has {made.vocabulary} tokens now, and the tokenizer is the base's"
        remedy = "Save the tokenizer that the adapter was trained with into the merged folder."
        yield Problem("tokenizer-missing", made.plan.bound.adapter.name, found, remedy=remedy, severity="warning")
