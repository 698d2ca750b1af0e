"""The road from a uri to a file: fetch, read, identify, bind, check, plan, write.

:mod:`adaptrix.api` and the command line both call the steps here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from adaptrix import atomic, model_card
from adaptrix.adapter import Adapter
from adaptrix.binding.bind import BoundAdapter, bind
from adaptrix.binding.identify import Identity, by_config, by_paths, by_record
from adaptrix.binding.translate import in_own_names
from adaptrix.destination import (
    config_files,
    config_of,
    destination,
    is_folder,
    no_place_for_fit,
    require_apart,
    require_carried,
    require_untaken,
    sparing,
)
from adaptrix.errors import AdaptrixError, Problem, RefusedError, UsageError, errors_in
from adaptrix.options import Options, require_options
from adaptrix.output_plan import Resolver, plan_to_write, unfollowed
from adaptrix.planning.folding import folded
from adaptrix.planning.plan import Plan, powerless
from adaptrix.plugins.catalog import Catalog
from adaptrix.records import Bundle, Format, Source
from adaptrix.results import CheckReport, Conversion
from adaptrix.sources.recorded import require_repository_or_path, unusable
from adaptrix.wording import nearest


class Maker(Protocol):
    """Makes the plans that need more than the adapter."""

    def __call__(self, bound: BoundAdapter, options: Options, out: Path) -> Plan:
        """A plan for what will be written to ``out``. Raises :class:`AdaptrixError`."""

    def forget(self, out: Path) -> None:
        """Removes what was kept beside ``out`` to go on from: it is written."""


class Pipeline:
    """The steps over one catalog. The catalog is made on first need."""

    def __init__(self, catalog: Catalog | None = None) -> None:
        self._given = catalog

    @cached_property
    def catalog(self) -> Catalog:
        return self._given or Catalog.from_environment()

    def fetch(self, uri: str) -> Bundle:
        """The files of an adapter. Raises :class:`AdaptrixError` of any kind."""
        return self._source(uri).fetch(uri, self.catalog.formats)

    def read(self, source: Bundle | str) -> Adapter:
        """The adapter of a uri or its files with all problems of reading; raises only where there is nothing
        to return."""
        bundle = self.fetch(source) if isinstance(source, str) else source
        with bundle.held():
            form = next((form for form in self.catalog.formats if form.detect(bundle)), None)
            if form is None:
                names = ", ".join(sorted(bundle.files)) or "no files"
                found = f"no format knows {names}"
                raise RefusedError(Problem("format-unknown", bundle.uri, found, self._known_formats()))
            adapter = form.read(bundle)
        return replace(adapter, problems=(*bundle.problems, *adapter.problems)) if bundle.problems else adapter

    def bind(self, adapter: Adapter, base: str | None = None) -> BoundAdapter:
        """The adapter on the architecture of ``base``, of its own base, of its record, or by its paths."""
        adapter = self._in_own_names(adapter, base)
        identity = self._identify(adapter, base)
        if not adapter.deltas and errors_in(adapter.problems):  # none were read: their family is no question
            identity = replace(identity, problems=errors_in(identity.problems))
        return bind(adapter, identity)

    def read_and_bind(self, subject: Adapter | str, base: str | None = None) -> CheckReport:
        """An adapter read and bound, its numbers not looked at yet: every step that may need a network.

        Raises :class:`UsageError` for a uri or ``base`` of an invalid form, :class:`UnreachableError` for one
        that cannot be reached; faults of files, those of the base too, are problems of the report.
        """
        name = subject if isinstance(subject, str) else subject.name
        try:
            bundle = self.fetch(subject) if isinstance(subject, str) else None
            if bundle is not None:
                bundle.hash_ahead()
            adapter = subject if isinstance(subject, Adapter) else self.read(bundle or subject)
        except RefusedError as error:
            return CheckReport(name, error.problems)
        try:
            bound = self.bind(adapter, base)
        except RefusedError as error:  # the files of the base: the adapter has problems of its own all the same
            adapter = in_own_names(adapter, self.catalog.architectures)
            bound = bind(adapter, self._without_base(adapter))
            return CheckReport(name, (*error.problems, *bound.problems), bound, bundle)
        return CheckReport(name, bound.problems, bound, bundle)

    def check(self, subject: Adapter | str, base: str | None = None, *, allow_nonfinite: bool = False) -> CheckReport:
        """Everything that is wrong with an adapter, alone and on a base. Raises as :meth:`read_and_bind` does."""
        report = self.read_and_bind(subject, base).noted()
        return report if allow_nonfinite else report.examined()

    def prepare(self, out: str | PathLike[str] | None, options: Options) -> None:
        """Raises :class:`UsageError` for what is known to be wrong before anything is fetched."""
        form = self._writable(options.to)
        require_options(options)
        path = destination(out if out is None else fspath(out), options.name, form)
        if path is not None:
            atomic.require_free(path, force=options.force, holds=form.writes, makes=is_folder(out))
        if options.vectors is not None and "spectral" not in form.carries:
            found, remedy = (
                f"{options.vectors!r} for a {form.name} output",
                "It is for spectral deltas in injection files.",
            )
            raise UsageError(Problem("option", "vectors", found, remedy=remedy))
        if options.wants_fit and "plan" not in form.carries and not options.prune:
            raise no_place_for_fit(options)

    def convert(
        self,
        uri: Adapter | str,
        out: str | PathLike[str] | None,
        options: Options,
        maker: Maker | None = None,
        resolver: Resolver | None = None,
    ) -> Conversion:
        """Reads, checks, plans and writes; raises :class:`AdaptrixError` and then leaves nothing behind."""
        self.prepare(out, options)
        return self.write(self.read_and_bind(uri, options.base), out, options, maker=maker, resolver=resolver)

    def write(
        self,
        report: CheckReport,
        out: str | PathLike[str] | None,
        options: Options,
        taken: Mapping[Path, str] = MappingProxyType({}),
        maker: Maker | None = None,
        resolver: Resolver | None = None,
    ) -> Conversion:
        """Plans and writes: :meth:`convert` after :meth:`prepare` and :meth:`read_and_bind`. Needs no network.

        ``taken``: paths that are not replaced even with ``force``, with the reason: other outputs of the same run.
        ``maker``: makes the plan. ``resolver``: finds the singular vectors that spectral deltas lack.
        """
        form = self._writable(options.to)
        report = report if options.allow_nonfinite else report.examined()
        if not report.ok or report.bound is None:
            raise RefusedError(errors_in(report.problems))
        bound, sources = _named(report.bound, options), [report.bundle] if report.bundle else []
        made = None
        if maker is not None:  # it may take hours: what can be known to be wrong is known before
            made = maker(bound, options, self._place(bound.adapter.name, out, options, sources, taken))
        plan = plan_to_write(bound, options, form, made, resolver)
        done = self.publish(plan, out, options, sources, taken)
        if maker is not None:
            maker.forget(done.path)
        said = (*report.problems, *unfollowed(bound, options, form), *done.problems)
        return replace(done, source=report.source, problems=said)

    def publish(
        self,
        plan: Plan,
        out: str | PathLike[str] | None,
        options: Options,
        sources: Iterable[Bundle] = (),
        taken: Mapping[Path, str] = MappingProxyType({}),
    ) -> Conversion:
        """Writes a plan to where the options say, apart from the files of its ``sources``.

        What the format does not carry is folded, exactly or rounded with a note; the rest is a :class:`UsageError`.
        """
        read, form = list(sources), self._writable(options.to)
        path = self._place(plan.bound.adapter.name, out, options, read, taken)
        plan, said = sparing(folded(plan, form.carries), form)
        require_carried(plan, form, options)
        assert form.write is not None  # _writable saw to it
        with atomic.output(path, force=options.force, holds=form.writes, makes=is_folder(out)) as work:
            form.write(plan, work)
            said += tuple(model_card.carry(read, work)) if model_card.NAME in form.writes else ()
            for bundle in read:
                bundle.require_unchanged()
            sizes = [tensor.nbytes for _, tensor in _read_back(form, work, path).tensors()]
        said = (*plan.notes, *powerless(plan), *said)
        return Conversion(path, plan, said, len(sizes), sum(sizes), plan.bound.adapter.name)

    def _place(
        self,
        name: str,
        out: str | PathLike[str] | None,
        options: Options,
        sources: Iterable[Bundle],
        taken: Mapping[Path, str],
    ) -> Path:
        """The path that an adapter is written to. Raises :class:`UsageError` for one of the run's own files."""
        path = self.output_path(name, out, options.to)
        for bundle in sources:
            require_apart(path, bundle.files.values())
        require_untaken(path, {**taken, **config_files(options.base)})
        return path

    def output_path(self, name: str, out: str | PathLike[str] | None, to: str = "injection") -> Path:
        """The file or folder that an adapter of a name is written to, in the format ``to``; ``out`` as for
        :func:`adaptrix.convert`."""
        path = destination(out if out is None else fspath(out), name, self._writable(to))
        assert path is not None  # there is a name
        return path

    def base_config(self, base: str) -> Mapping[str, Any]:
        """The config.json of a base model."""
        return self._source(base).config(base)

    def _in_own_names(self, adapter: Adapter, base: str | None) -> Adapter:
        """The adapter with module paths, where it has the names of a dialect."""
        if not adapter.dialect:
            return adapter
        try:
            named = base or adapter.base
            config = self.base_config(named) if named else None
        except AdaptrixError:
            if base is not None:
                raise
            config = None  # _identify says why: the user did not name this base
        return in_own_names(adapter, self.catalog.architectures, config)

    def _identify(self, adapter: Adapter, base: str | None) -> Identity:
        architectures = self.catalog.architectures
        if base is not None:
            return by_config(self.base_config(base), architectures, adapter, config_of(base))
        if adapter.base is None or (adapter.recorded is not None and adapter.recorded.verified):
            return self._without_base(adapter)
        try:
            require_repository_or_path(adapter.base)
            found = by_config(self.base_config(adapter.base), architectures, adapter, config_of(adapter.base))
            if errors := errors_in(found.problems):
                raise RefusedError(errors)
        except AdaptrixError as error:  # the user did not name this base: the adapter may do without it
            found = self._without_base(adapter)
            return replace(found, problems=(unusable(adapter.base, error), *found.problems))
        return found

    def _without_base(self, adapter: Adapter) -> Identity:
        """The identity of the adapter without a base: by its record, or by its paths."""
        architectures = self.catalog.architectures
        recorded = adapter.recorded
        return by_paths(adapter, architectures) if recorded is None else by_record(adapter, recorded, architectures)

    def _source(self, uri: str) -> Source:
        source = next((source for source in self.catalog.sources if source.claims(uri)), None)
        if source is None:
            known = ", ".join(source.name for source in self.catalog.sources)
            raise UsageError(Problem("address", uri, "no source knows what this is", f"something for one of: {known}"))
        return source

    def _writable(self, name: str) -> Format:
        formats = self.catalog.writable
        if name not in formats:
            remedy = nearest(name, formats)
            raise UsageError(Problem("option", f"to {name}", "no such format to write", ", ".join(formats), remedy))
        return formats[name]

    def _known_formats(self) -> str:
        return "; ".join(f"{f.name} ({' + '.join('|'.join(p) for p in f.patterns)})" for f in self.catalog.formats)


def _named(bound: BoundAdapter, options: Options) -> BoundAdapter:
    return bound if options.name is None else replace(bound, adapter=replace(bound.adapter, name=options.name))


class _Written(Bundle):
    """The files just written. They are read back once, and need no digests."""

    @property
    def sha256(self) -> Mapping[str, str]:
        return {}


def _read_back(form: Format, work: Path, path: Path) -> Adapter:
    """The output read back. Raises :class:`RefusedError` where its own format cannot read it; nothing is then left."""
    files = {file.name: file for file in work.iterdir()} if work.is_dir() else {path.name: work}
    try:
        return form.read(_Written(str(path), path.name, files)).require_sound()
    except RefusedError as error:
        found = f"what would be written cannot be read back: {error.problems[0]}"
        remedy = "The source contradicts itself; if it does not, report this."
        raise RefusedError(Problem("output-unreadable", str(path), found, remedy=remedy)) from None
