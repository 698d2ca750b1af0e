"""The road from an adapter and a base to a merged model: everything is checked before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from adaptrix import atomic
from adaptrix.destination import require_apart, require_folder
from adaptrix.errors import Problem, RefusedError, UsageError, errors_in
from adaptrix.merging.agreement import Agreement
from adaptrix.merging.base import INDEX, TOKENIZER, Base, matching
from adaptrix.merging.change import Change
from adaptrix.merging.changes import Drafting
from adaptrix.merging.config import merged_config
from adaptrix.merging.fetch import fetch_base
from adaptrix.merging.places import Places
from adaptrix.merging.record import RECORD, record
from adaptrix.merging.tied import is_tied, tied_changes, tied_problems, vocabulary
from adaptrix.options import dtype_name
from adaptrix.planning.plan import Plan, make_plan, powerless, recorded_plan
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS
from adaptrix.workflow import Report, Workshop

#: opens a progress display for so many bytes; what it yields is told of each piece
Display = Callable[[int], AbstractContextManager[Callable[[int], object]]]
#: looks at what was written before it is there for all to see; raises where it is no good
Check = Callable[[Path], Agreement]
QloraBase = Literal["bf16", "nf4"]
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class MergeOptions:
    """What can be asked of a merge; the command line's options by the same names.

    ``layers``: a policy; None is all of a PEFT checkpoint, and an injection file's own plan, as attaching does it.
    ``dtype``: that of the result, by default each tensor's own. ``verify``: the merged model is held to its base with
    the adapter attached, and is not written where they are not one. ``qlora_base``: the adapter was trained on the
    base in NF4, and is merged into what NF4 leaves of it (``nf4``) or into its full precision (``bf16``).
    """

    layers: str | None = None
    dtype: str | None = None
    force: bool = False
    allow_nonfinite: bool = False
    verify: bool = False
    qlora_base: QloraBase | None = None


@dataclass(frozen=True)
class Merge:
    """A merge that was done: the folder, the plan, how many of the base's tensors changed, bytes, all that was said."""

    path: Path
    plan: Plan
    changed: int
    tensors: int
    nbytes: int
    problems: tuple[Problem, ...]
    agreement: Agreement | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """A merge that can be done: nothing of it is written yet. ``linear``: see :meth:`Places.linear`."""

    plan: Plan
    base: Base
    changes: Mapping[str, Change]
    vocabulary: int | None
    problems: tuple[Problem, ...]
    bundle: Bundle | None = None
    linear: Mapping[str, bool] = field(default_factory=lambda: MappingProxyType({}))

    def on(self, base: QloraBase) -> Draft:
        """The same merge into what NF4 leaves of the base, or into its full precision."""
        changes = {name: replace(change, nf4=False) for name, change in self.changes.items() if not change.empty}
        if base == "nf4":
            changes |= {name: _in_nf4(changes.get(name), turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes)

    def base_alone(self) -> Draft:
        """What NF4 leaves of the base, and nothing merged into it."""
        changes = {name: _in_nf4(None, turned) for name, turned in self.linear.items()}
        return replace(self, changes=changes, vocabulary=None)


def _in_nf4(change: Change | None, turned: bool) -> Change:
    return replace(change or Change(), turned=turned, nf4=True)


def quiet(_total: int) -> AbstractContextManager[Callable[[int], object]]:
    """No display at all."""
    return nullcontext(lambda _count: None)


def prepare(out: str | None, options: MergeOptions) -> None:
    """Raises :class:`UsageError` for what is known to be wrong before anything is fetched."""
    if options.dtype is not None and dtype_name(options.dtype) not in _DTYPES:
        raise UsageError(Problem("option", "dtype", f"{options.dtype!r}", f"one of {', '.join(_DTYPES)}"))
    if out is not None and out.endswith("/"):
        require_folder(out)
    elif out is not None:
        atomic.require_free(Path(out), force=options.force)
    if options.qlora_base not in (None, "bf16", "nf4"):
        raise UsageError(Problem("option", "qlora_base", f"{options.qlora_base!r}", "bf16 or nf4"))
    require("torch", "torch")
    if options.verify:
        require("transformers", "torch")
    if options.qlora_base == "nf4" or (options.qlora_base and options.verify):
        require("bitsandbytes", "qlora")


def require(module: str, extra: str) -> None:
    """Raises :class:`UsageError` where a module is not installed, with the extra that brings it."""
    try:
        import_module(module)
    except ImportError:
        remedy = f'Run: pip install "adaptrix[{extra}]"'
        raise UsageError(Problem("missing-extra", "merge", f"{module} is not installed", remedy=remedy)) from None


def draft(workshop: Workshop, uri: str, base: str, options: MergeOptions) -> Draft:
    """Reads the adapter, then the base, and settles what happens to each tensor. Raises :class:`AdaptrixError`."""
    report = workshop.fit(uri, base)
    report = report if options.allow_nonfinite else report.examined()
    if not report.ok or report.bound is None:
        raise RefusedError(errors_in(report.problems))
    plan = _plan(report, options.layers)
    made = settle(plan, fetch_base(base, workshop), report)
    return made if options.qlora_base is None else made.on(options.qlora_base)


def _plan(report: Report, layers: str | None) -> Plan:
    assert report.bound is not None  # its caller has looked
    recorded = report.bound.adapter.recorded
    if layers is None and recorded is not None:
        return recorded_plan(report.bound, recorded)
    return make_plan(report.bound, layers or "all")


def settle(plan: Plan, base: Base, report: Report) -> Draft:
    """What happens to each tensor of the base. Raises :class:`RefusedError` with every reason against it."""
    architecture, problems = plan.bound.architecture, list(_quantised(base))
    places = Places(base.tensors(), architecture, plan.bound.dims)
    tied = is_tied(base.config, places)
    drafting = Drafting(plan, places, tied=tied)
    drafting.run()
    problems += drafting.problems
    if tied:
        problems += tied_problems(plan, places)
    changes = tied_changes(places, drafting.changes) if tied else drafting.changes
    size, contradictions = vocabulary(plan, places, changes)
    problems += contradictions
    if errors := errors_in(problems):
        raise RefusedError(errors)
    said = (*report.problems, *plan.notes, *powerless(plan), *problems)
    return Draft(plan, base, changes, size, said, report.bundle, MappingProxyType(places.linear()))


def _quantised(base: Base) -> Iterator[Problem]:
    if base.config.get("quantization_config"):
        remedy = "Merge into the base before it was quantised."
        yield Problem("quantised", base.name, "the base is quantised", "weights in floats", remedy)


def write(made: Draft, out: str | None, options: MergeOptions, display: Display = quiet) -> Merge:
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
        (work / RECORD).write_text(_json(record(made.plan, made.base, options.dtype, options.qlora_base)))
        agreement = check(work) if check else None
    said = (*made.problems, *_tokenizer_note(made, tokenizer))
    return Merge(path, made.plan, len(made.changes), len(made.base.tensors()), total, said, agreement)


def _check(made: Draft, options: MergeOptions, room: Path) -> Check | None:
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


def write_model(made: Draft, folder: Path, dtype: str | None, display: Display = quiet) -> int:
    """The weights, their index and the config; how many bytes of tensors they are."""
    from adaptrix.merging.shards import Entry, write_shard

    wanted = None if dtype is None else dtype_name(dtype)
    shards: dict[str, list[Entry]] = {}
    for file, tensors in made.base.shards.items():
        shards[file] = []
        for name, tensor in tensors.items():
            cast = wanted if wanted is not None and tensor.dtype in FLOATS else tensor.dtype
            change = made.changes.get(name) or (Change() if cast != tensor.dtype else None)
            shards[file].append(Entry(name, tensor, cast, change))
    total = sum(entry.result.nbytes for entries in shards.values() for entry in entries)
    with display(total) as progress:
        for file, entries in shards.items():
            write_shard(folder / file, entries, {**made.base.metadata[file], "format": "pt"}, progress)
    if made.base.index is not None:
        sizes = {entry.name: entry.result.size for entries in shards.values() for entry in entries}
        (folder / INDEX).write_text(_json(_index(made.base, total, sizes)))
    _write_config(made, folder, wanted)
    return total


def _index(base: Base, total: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The base's index with the sizes of the result."""
    assert base.index is not None  # its caller has looked
    stated = base.index.get("metadata")
    metadata = {**(stated if isinstance(stated, dict) else {}), "total_size": total}
    grown = sum(sizes.values()) - sum(tensor.size for tensor in base.tensors().values())
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += grown
    return {**base.index, "metadata": metadata}


def _write_config(made: Draft, folder: Path, dtype: str | None) -> None:
    """The config: the base's own bytes where nothing in it changes."""
    config = merged_config(made.base.config, made.plan.bound.architecture, made.vocabulary, dtype)
    if config == made.base.config:
        shutil.copyfile(made.base.folder / "config.json", folder / "config.json")
    else:
        (folder / "config.json").write_text(_json(config))


def _own_tokenizer(made: Draft) -> dict[str, Path]:
    """The tokenizer beside the adapter: one that added tokens has its own. A single file has no folder to itself."""
    files = made.bundle.files.values() if made.bundle else ()
    homes = {file.parent for file in files} if len(files) > 1 else set()
    return {name: file for home in homes for name, file in matching(home, TOKENIZER).items()}


def _tokenizer_note(made: Draft, tokenizer: Mapping[str, Path]) -> Iterator[Problem]:
    if made.vocabulary is not None and not tokenizer:
        found = f"the vocabulary has {made.vocabulary} tokens now, and the tokenizer is the base's"
        remedy = "Save the tokenizer that the adapter was trained with into the merged folder."
        yield Problem("tokenizer", made.plan.bound.adapter.name, found, remedy=remedy, severity="warning")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
