"""The road from a uri to a file: fetch, read, identify, bind, check, plan, write.

The public functions of :mod:`adaptrix` are here; the command line calls the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptrix import atomic
from adaptrix.adapter import Adapter
from adaptrix.bind import BoundAdapter, bind, nonfinite
from adaptrix.catalog import Catalog
from adaptrix.errors import AdaptrixError, Problem, RefusedError, UnreachableError, UsageError, errors_in
from adaptrix.identify import Identity, by_config, by_paths, by_record
from adaptrix.plan import Plan, make_plan, recorded_plan
from adaptrix.prune import cast, pruned
from adaptrix.records import Bundle, Format, Source
from adaptrix.redistribute import Redistribution, reshape_plan
from adaptrix.tensor import FLOATS

_NAME = re.compile(r"[\w][\w.+@-]{0,200}")


@dataclass(frozen=True)
class Report:
    """What a check found. ``bound`` is None where the files could not be read at all."""

    subject: str
    problems: tuple[Problem, ...]
    bound: BoundAdapter | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing found is an error."""
        return not errors_in(self.problems)

    def as_dict(self) -> dict[str, Any]:
        return {"subject": self.subject, "ok": self.ok, "problems": [problem.as_dict() for problem in self.problems]}


@dataclass(frozen=True)
class Conversion:
    """A conversion that was done: the file or folder written, the plan in it, all that was said."""

    path: Path
    plan: Plan
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Options:
    """What can be asked of a conversion; the command line's options by the same names.

    ``layers``: a policy; None is ``middle`` for an injection file (or the plan of the injection file
    that is read) and ``all`` for a PEFT folder, which cannot hold inactive deltas; pruning an injection
    file means its own plan.
    """

    to: str = "injection"
    base: str | None = None
    layers: str | None = None
    redistribute: Redistribution = "none"
    rank: int | None = None
    prune: bool = False
    dtype: str | None = None
    name: str | None = None
    force: bool = False
    allow_nonfinite: bool = False


class Workshop:
    """The steps over one catalog. The catalog is made on first need."""

    def __init__(self, catalog: Catalog | None = None) -> None:
        self._given = catalog

    @cached_property
    def catalog(self) -> Catalog:
        return self._given or Catalog.from_environment()

    def fetch(self, uri: str) -> Bundle:
        """The files of an adapter. Raises :class:`AdaptrixError` of any kind."""
        return self._source(uri).fetch(uri, self.catalog.formats)

    def read(self, uri: str) -> Adapter:
        """The adapter at a uri with all problems of reading; raises only where there is nothing to return."""
        bundle = self.fetch(uri)
        form = next((form for form in self.catalog.formats if form.detect(bundle)), None)
        if form is None:
            names = ", ".join(sorted(bundle.files)) or "no files"
            raise RefusedError(Problem("format", uri, f"no format knows {names}", self._known_formats()))
        adapter = form.read(bundle)
        return replace(adapter, problems=(*bundle.problems, *adapter.problems)) if bundle.problems else adapter

    def bind(self, adapter: Adapter, base: str | None = None) -> BoundAdapter:
        """The adapter on the architecture of ``base``, of its own base, of its record, or by its paths."""
        return bind(adapter, self._identify(adapter, base))

    def check(self, subject: Adapter | str, base: str | None = None, *, allow_nonfinite: bool = False) -> Report:
        """Everything that is wrong with an adapter, alone and on a base.

        A source or ``base`` that cannot be reached raises; bad files are problems of the report.
        """
        name = subject if isinstance(subject, str) else subject.name
        try:
            adapter = self.read(subject) if isinstance(subject, str) else subject
        except RefusedError as error:
            return Report(name, error.problems)
        bound = self.bind(adapter, base)
        unsound = () if allow_nonfinite else tuple(nonfinite(bound))
        return Report(name, (*bound.problems, *unsound), bound)

    def convert(self, uri: str, out: Path | None, options: Options) -> Conversion:
        """Reads, checks, plans and writes; raises :class:`AdaptrixError` and then leaves nothing behind."""
        form = self._writable(options.to)
        _require_options(options)
        report = self.check(uri, options.base, allow_nonfinite=options.allow_nonfinite)
        if not report.ok or report.bound is None:
            raise RefusedError(errors_in(report.problems))
        plan = self._plan(report.bound, options)
        path = _destination(plan.bound.adapter.name, out, form)
        with atomic.output(path, force=options.force) as work:
            assert form.write is not None  # _writable saw to it
            form.write(plan, work)
            _require_readable(form, work, path)
        return Conversion(path, plan, (*report.problems, *plan.notes, *_idle(plan)))

    def base_config(self, base: str) -> Mapping[str, Any]:
        """The config.json of a base model."""
        return self._source(base).config(base)

    def _plan(self, bound: BoundAdapter, options: Options) -> Plan:
        if options.name is not None:
            bound = replace(bound, adapter=replace(bound.adapter, name=options.name))
        folder = options.to != "injection"
        recorded = bound.adapter.recorded
        if options.layers is None and recorded is not None and (options.prune or not folder):
            plan = recorded_plan(bound, recorded)
        else:
            plan = make_plan(bound, options.layers or ("all" if folder else "middle"))
        plan = reshape_plan(plan, options.redistribute, options.rank)
        if options.prune:
            plan = pruned(plan)
        elif folder and not plan.complete:
            raise _would_lose(plan, options.to)
        return cast(plan, options.dtype) if options.dtype else plan

    def _identify(self, adapter: Adapter, base: str | None) -> Identity:
        architectures = self.catalog.architectures
        if base is not None:
            return by_config(self.base_config(base), architectures, adapter, _config_of(base))
        if adapter.recorded is not None:
            return by_record(adapter, adapter.recorded, architectures)
        if adapter.base is None:
            return by_paths(adapter, architectures)
        try:
            found = by_config(self.base_config(adapter.base), architectures, adapter, _config_of(adapter.base))
            if errors := errors_in(found.problems):
                raise RefusedError(errors)
        except AdaptrixError as error:  # nobody asked for this base by name: the adapter may do without it
            found = by_paths(adapter, architectures)
            return replace(found, problems=(_no_base(adapter.base, error), *found.problems))
        return found

    def _source(self, uri: str) -> Source:
        source = next((source for source in self.catalog.sources if source.claims(uri)), None)
        if source is None:
            known = ", ".join(source.name for source in self.catalog.sources)
            raise UsageError(Problem("uri", uri, "no source knows what this is", f"something for one of: {known}"))
        return source

    def _writable(self, name: str) -> Format:
        formats = {form.name: form for form in self.catalog.formats if form.write is not None}
        if name not in formats:
            raise UsageError(Problem("format", f"to {name}", "no such format to write", ", ".join(formats)))
        return formats[name]

    def _known_formats(self) -> str:
        return "; ".join(f"{f.name} ({' + '.join('|'.join(p) for p in f.patterns)})" for f in self.catalog.formats)


def _require_options(options: Options) -> None:
    """Raises :class:`UsageError` with every option that makes no sense."""
    problems = []
    if options.rank is not None and options.rank < 1:
        problems.append(Problem("option", "rank", f"{options.rank}", "a whole number of at least 1"))
    if options.dtype is not None and options.dtype not in FLOATS:
        problems.append(Problem("option", "dtype", f"{options.dtype!r}", f"one of {', '.join(FLOATS)}"))
    if options.redistribute not in ("none", "nearest"):
        problems.append(Problem("option", "redistribute", f"{options.redistribute!r}", "none or nearest"))
    if options.name is not None and not _NAME.fullmatch(options.name):
        problems.append(Problem("option", "name", f"{options.name!r}", "letters, digits and . _ - + @, no path"))
    if problems:
        raise UsageError(problems)


def _destination(name: str, out: Path | None, form: Format) -> Path:
    """The path to write: ``out``, or the adapter's name in ``out`` if that is a folder and a file is
    written, or in the current folder."""
    safe = re.sub(r"[^\w.+@-]", "-", name).lstrip(".-") or "adapter"
    default = safe + form.suffix
    if out is None:
        return Path(default)
    return out / default if form.suffix and out.is_dir() else out


class _Written(Bundle):
    """What was just written; nobody asks for its digests."""

    @property
    def sha256(self) -> Mapping[str, str]:
        return {}


def _require_readable(form: Format, work: Path, path: Path) -> None:
    """Raises :class:`RefusedError` where the format would not read back what it wrote: then nothing is written."""
    files = {file.name: file for file in work.iterdir()} if work.is_dir() else {path.name: work}
    try:
        form.read(_Written(str(path), path.name, files)).require_sound()
    except RefusedError as error:
        found = f"what would be written cannot be read back: {error.problems[0]}"
        remedy = "The source contradicts itself; if it does not, report this."
        raise RefusedError(Problem("not-readable", str(path), found, remedy=remedy)) from None


def _would_lose(plan: Plan, to: str) -> UsageError:
    idle = len(plan.bound.deltas) - len(plan.sites)
    found = f"{idle} deltas are outside the plan and {len(plan.overrides)} replaced by it"
    remedy = f"A {to} folder has no place for them: add --prune to drop them, or leave out --layers."
    return UsageError(Problem("would-lose", f"to {to}", found, "the plan all", remedy))


def _idle(plan: Plan) -> Iterator[Problem]:
    """A plan under which nothing acts is rarely what was meant."""
    if plan.bound.deltas and not plan.sites:
        remedy = "Choose others with --layers, or all."
        yield Problem("nothing-acts", "plan", "none of its layers has a delta", remedy=remedy, severity="warning")


def _config_of(base: str) -> str:
    """What messages call a base's config."""
    return base if base.endswith(".json") else f"{base.rstrip('/')}/config.json"


def _no_base(base: str, error: AdaptrixError) -> Problem:
    first = error.problems[0]
    why = first.found if first.where == base else f"{first.where}: {first.found}"
    kind = "cannot be reached" if isinstance(error, UnreachableError) else "cannot be used"
    return Problem(
        "base",
        base,
        f"the base {kind} ({why})",
        severity="note",
        remedy="Dims are inferred from the tensors; name another with --base MODEL.",
    )
