"""Typed records that plugins contribute, yielded by hooks and validated by the catalog."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adaptrix.digests import Digests
from adaptrix.errors import Problem, refuse
from adaptrix.feature_names import LORA

if TYPE_CHECKING:
    import click

    from adaptrix.adapter import Adapter
    from adaptrix.planning.plan import Plan

_UNSTATED = frozenset({"unstated"})


@dataclass(frozen=True)
class Bundle:
    """The files of one checkpoint, on this disk.

    - ``uri``: as it was typed, or as it could have been typed to name just these files.
    - ``name``: what a person would call it.
    - ``files``: name in the checkpoint -> path on this disk.
    - ``commit``: the Hub's, None for files of this disk.
    - ``problems``: warnings and notes of the source, never an error: such as that the Hub was out of reach and the
      files are from the cache.
    """

    uri: str
    name: str
    files: Mapping[str, Path]
    commit: str | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def sha256(self) -> Mapping[str, str]:
        """The SHA-256 of every file, computed at the first access, or in the background after :meth:`hash_ahead`."""
        return self._digests

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block whose readers find the files as they were first opened, whatever takes their place on the disk."""
        with self._digests.held():
            yield

    def hash_ahead(self) -> None:
        """Begins to compute the digests in a thread, while other work goes on."""
        self._digests.begin()

    def require_unchanged(self) -> None:
        """Raises :class:`RefusedError` for a file that is no longer what its digest says."""
        self._digests.require_unchanged()

    @cached_property
    def _digests(self) -> Digests:
        return Digests(self.files)

    def one(self, name: str) -> Path:
        """The path of a file that must be there."""
        if name not in self.files:
            there = ", ".join(sorted(self.files)) or "nothing"
            raise refuse("file-missing", self.uri, f"there is no {name}, only {there}", name)
        return self.files[name]


class _Carried:
    """Reads an option of an earlier version from a format's ``carries``."""

    def __init__(self, feature: str) -> None:
        self._feature = feature

    def __get__(self, form: Format | None, owner: type[Format]) -> bool | None:
        return None if form is None else self._feature in form.carries


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of adapters.

    ``patterns``: the file names that make up a checkpoint of it (``fnmatch``), so that a source fetches
    these and nothing else; one tuple holds alternatives, of which the first that exists is read.
    ``detect`` returns True for a bundle of this format, from names and a few bytes. ``read`` returns an
    adapter with every problem it found, and raises only where there is nothing to return. ``write``,
    where there is one, writes a plan to a path that does not exist yet; the caller moves it into place.
    ``sniff``: True for the first bytes of a file that has a name of the format and is of it, for names that other
    files have too: it is asked before a file is fetched.
    ``suffix``: what is added to an adapter's name for a default output; "" for a folder, which is called
    ``<adapter>-<format>``. ``writes``: the names of the files in such a folder; one that has any other is never
    replaced. ``carries``: what the files can hold, of :data:`adaptrix.feature_names.FEATURES`; to be stated with
    ``write``, which is given plans that need nothing else. ``keeps_plan`` and ``keeps_spectral`` are how ``plan`` and
    ``spectral`` were stated before, beside all of a LoRA; they still work in this version, with a warning.
    """

    name: str
    patterns: Sequence[tuple[str, ...]]
    detect: Callable[[Bundle], bool]
    read: Callable[[Bundle], Adapter]
    write: Callable[[Plan, Path], None] | None = None
    suffix: str = ""
    writes: tuple[str, ...] = ()
    keeps_plan: InitVar[bool | None] = _Carried("plan")  # None, where the class is asked
    keeps_spectral: InitVar[bool | None] = _Carried("spectral")
    carries: frozenset[str] = _UNSTATED
    sniff: Callable[[bytes], bool] | None = None

    def __post_init__(self, keeps_plan: bool | None, keeps_spectral: bool | None) -> None:
        if self.carries is not _UNSTATED:
            return
        stated = {"plan": keeps_plan, "spectral": keeps_spectral}
        for feature, kept in stated.items():
            if kept not in (None, True, False):
                raise TypeError(f"the keeps_{feature} of {self.name} is {kept!r}, not True or False")
        carries = LORA.union(feature for feature, kept in stated.items() if kept) if self.write else frozenset()
        object.__setattr__(self, "carries", carries)
        if self.write:
            said = f"format {self.name} states no carries; until the next version it is taken for {sorted(carries)}"
            warnings.warn(said, DeprecationWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class Source:
    """A place that adapters and base configs come from.

    ``claims`` returns True for a uri of its own, without touching the network. ``fetch`` returns the
    files that the patterns of the formats name, and raises :class:`UnreachableError` or
    :class:`RefusedError`. ``config`` returns the content of a base model's config.json.
    """

    name: str
    claims: Callable[[str], bool]
    fetch: Callable[[str, Sequence[Format]], Bundle]
    config: Callable[[str], Mapping[str, Any]]


class Generate(Protocol):
    """A generator's entry point: takes a prompt and options, returns an ordinary adapter."""

    def __call__(self, prompt: str, /, **options: Any) -> Adapter: ...


@dataclass(frozen=True, slots=True)
class Generator:
    """A way to obtain an adapter other than reading one."""

    name: str
    summary: str
    generate: Generate


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand of the command line; ``load`` imports it when it is first needed."""

    name: str
    summary: str
    load: Callable[[], click.Command]
