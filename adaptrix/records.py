"""Typed records that plugins contribute, yielded by hooks and validated by the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol

from adaptrix.errors import Problem, refuse

if TYPE_CHECKING:
    import click

    from adaptrix.adapter import Adapter
    from adaptrix.planning.plan import Plan

_PIECE = 4 << 20  # large, so that the thread rarely has to ask for the interpreter


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

    def hash_ahead(self) -> None:
        """Begins to compute the digests in a thread, while other work goes on."""
        self._digests.begin()

    @cached_property
    def _digests(self) -> _Digests:
        return _Digests(self.files)

    def one(self, name: str) -> Path:
        """The path of a file that must be there."""
        if name not in self.files:
            there = ", ".join(sorted(self.files)) or "nothing"
            raise refuse("file-missing", self.uri, f"there is no {name}, only {there}", name)
        return self.files[name]


class _Digests(Mapping[str, str]):
    """Digests by file name, computed in a thread; the first access waits for them."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files, self._found = files, dict[str, str | OSError]()
        self._thread = Thread(target=self._compute, daemon=True)
        self._lock = Lock()

    def begin(self) -> None:
        """Starts the thread; calling it again does nothing."""
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def _compute(self) -> None:
        for name, path in self._files.items():
            try:
                self._found[name] = _sha256(path)
            except OSError as error:  # raised when the digest is read
                self._found[name] = error

    def __getitem__(self, name: str) -> str:
        if name not in self._files:
            raise KeyError(name)
        self.begin()
        self._thread.join()
        found = self._found[name]
        if isinstance(found, OSError):
            raise refuse("file-unreadable", self._files[name], f"it cannot be read: {found.strerror or found}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _sha256(path: Path) -> str:
    import hashlib  # imported here: listing commands does not need it

    digest, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Format:
    """A file format of adapters.

    ``patterns``: the file names that make up a checkpoint of it (``fnmatch``), so that a source fetches
    these and nothing else; one tuple holds alternatives, of which the first that exists is read.
    ``detect`` returns True for a bundle of this format, from names and a few bytes. ``read`` returns an
    adapter with every problem it found, and raises only where there is nothing to return. ``write``,
    where there is one, writes a plan to a path that does not exist yet; the caller moves it into place.
    ``suffix``: what is added to an adapter's name for a default output; "" for a folder, which is called
    ``<adapter>-<format>``. ``writes``: the names of the files in such a folder; one that has any other is never
    replaced. ``keeps_plan``: what is written holds inactive deltas and the plan itself. ``keeps_spectral``: it holds
    spectral deltas as they are; ``write`` of any other format is given LoRAs of them.
    """

    name: str
    patterns: Sequence[tuple[str, ...]]
    detect: Callable[[Bundle], bool]
    read: Callable[[Bundle], Adapter]
    write: Callable[[Plan, Path], None] | None = None
    suffix: str = ""
    writes: tuple[str, ...] = ()
    keeps_plan: bool = False
    keeps_spectral: bool = False


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
