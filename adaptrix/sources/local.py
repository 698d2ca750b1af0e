"""Adapters and base configs on this disk: a folder, or one file of an adapter."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adaptrix.errors import AdaptrixError, Problem, RefusedError, UsageError, refuse
from adaptrix.json_file import read_object
from adaptrix.records import Bundle, Format, Source
from adaptrix.sources.full_model import count_tensors
from adaptrix.sources.near import meant
from adaptrix.sources.other_formats import peek_into
from adaptrix.sources.select import Choice, Listing, at_top, choose, choose_file
from adaptrix.special_files import SPECIAL_FILES, old_folder
from adaptrix.wording import shown, some

#: a name with such an ending is a file on this disk, unless its first folder is not here: then it may be on the Hub
_SUFFIXES = (".safetensors", ".bin", ".json", ".gguf", ".pt", ".pth", ".ckpt")
_MAX_FOLDERS = 1000


def claims(uri: str) -> bool:
    """True where ``uri`` is a path: it exists, or it can be nothing else (``./x``, ``/x``, ``~/x``, ``x.bin``,
    ``folder/x.bin`` where there is such a folder, ``folder/folder/x`` where there are both).

    Names that no source can have (empty, with control characters) are claimed as well, to be refused here.
    """
    return not uri or not uri.isprintable() or os.path.lexists(_path(uri)) or _looks_like_path(uri)


def fetch(uri: str, formats: Sequence[Format]) -> Bundle:
    """The files of the adapter at ``uri``; nothing is copied.

    Raises ``UsageError`` (``path-empty``, ``path-unprintable``, ``path-missing``) or ``RefusedError``
    (``link-broken``, ``file-odd``, ``no-permission``, ``disk-error``, ``too-many-folders``, and what
    :mod:`adaptrix.sources.select` finds).
    """
    with _reading(uri):
        path = _existing(uri)
        folder = path if path.is_dir() else path.parent
        choice = _in_folder(uri, path, formats) if path.is_dir() else _by_file(uri, path, formats)
        home = folder / choice.folder
        files = {name: home / name for name in choice.names}
        for file in files.values():
            _require_readable(file)
        where = os.path.join(uri, choice.folder) if choice.folder else uri
        return Bundle(where, choice.label or _name(home), files, problems=tuple(_unread(home, files, formats)))


def config(uri: str) -> Mapping[str, Any]:
    """The base model's config: ``config.json`` in the folder ``uri``, or the file itself.

    Raises as :func:`fetch` does; ``base-config`` where the folder has none, and as :func:`read_object` where it
    is no JSON object of a config's size.
    """
    with _reading(uri):
        path = _existing(uri)
        if not path.is_dir():
            return read_object(path, uri)
        if not os.path.lexists(path / "config.json"):
            there = some(name for name, _ in _entries(path))
            found = f"there is no config.json in it, only {there}" if there else "the folder is empty"
            raise refuse("base-config", uri, found, "the config.json of a model")
        return read_object(path / "config.json", os.path.join(uri, "config.json"))


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turns an error of the disk into a refusal."""
    try:
        yield
    except PermissionError as error:
        raise refuse("permission-denied", uri, "it may not be read", remedy="Ask for read access.") from error
    except OSError as error:
        raise refuse("file-unreadable", uri, f"it cannot be read: {error.strerror or error}") from error


def _path(uri: str) -> Path:
    path = Path(uri)
    return Path(os.path.expanduser(path)) if uri.startswith("~") and not os.path.lexists(path) else path


def _looks_like_path(uri: str) -> bool:
    if "://" in uri:
        return False
    rooted = uri.startswith(("/", "~", "./", "../")) or uri in (".", "..") or uri.endswith("/")
    named = uri.endswith(_SUFFIXES) and _starts_here(uri)
    return rooted or "\\" in uri or ".." in uri.split("/") or named or _is_far_in(uri)


def _starts_here(uri: str) -> bool:
    """True where ``uri`` is a bare name, or its first folder exists: ``owner/name/x.safetensors`` is the Hub's."""
    first, below, _ = uri.partition("/")
    return not below or os.path.isdir(first)


def _is_far_in(uri: str) -> bool:
    """True where the two folders that would be the owner and the name of a repository are here."""
    folder, _, below = uri.rpartition("/")
    return folder.count("/") > 0 and bool(below) and os.path.isdir("/".join(uri.split("/")[:2]))


def _existing(uri: str) -> Path:
    """The absolute path of what ``uri`` names, which is a folder or a regular file."""
    if not uri:
        raise UsageError(Problem("address", "", "the name of an adapter is empty"))
    if not uri.isprintable():
        found = "the name has control characters or bytes that are no text"
        raise UsageError(Problem("address", ascii(uri), found, remedy="Rename it."))
    path = _path(uri)
    if not os.path.lexists(path):
        raise _missing(uri, path)
    if kind := _special(path):
        code = "file-missing" if path.is_symlink() else "file-unreadable"
        raise refuse(code, uri, f"it is {kind}", "a folder or a file")
    return path.absolute()


def _missing(uri: str, path: Path) -> AdaptrixError:
    """Says where the path stops existing, and what is there instead."""
    parent = path.parent
    while not os.path.lexists(parent) and parent != parent.parent:
        path, parent = parent, parent.parent
    where = "here" if str(parent) == "." else f"in {parent}"
    if old_folder(path).is_dir():
        found = f"there is no {path.name} {where}: a run that was replacing it was stopped"
        return _no_path(uri, found, f"The folder as it was is {old_folder(path)}: rename it.")
    if not os.path.isdir(parent):
        return _no_path(uri, f"{parent} is no folder")
    if not os.access(parent, os.X_OK):
        return refuse("permission-denied", uri, f"the folder {parent} may not be entered")
    there = [name for name, _ in _entries(parent)] if os.access(parent, os.R_OK) else []
    remedy = meant(uri) or (f"There is {some(there, 5)} {where}." if there else "")
    return _no_path(uri, f"there is no {path.name} {where}", remedy)


def _no_path(uri: str, found: str, remedy: str = "") -> UsageError:
    return UsageError(Problem("file-missing", uri, found, "a folder or a file", remedy))


def _special(path: Path) -> str | None:
    """A description of ``path`` ("a socket") if it is neither a folder nor a regular file; else None."""
    try:
        mode = path.stat().st_mode
    except PermissionError:
        return "in a folder that may not be entered"
    except OSError:  # the target is missing, or a loop
        return f"a link to {shown(os.readlink(path))}, which is not there" if path.is_symlink() else "gone"
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else SPECIAL_FILES.get(stat.S_IFMT(mode), "no file")


def _in_folder(uri: str, folder: Path, formats: Sequence[Format]) -> Choice:
    entries = _entries(folder)
    listing = _listing(uri, folder, entries)
    if not at_top(listing, formats):
        listing = _listing(uri, folder, [*entries, *_below(uri, entries)])
    return choose(listing, formats)


def _by_file(uri: str, path: Path, formats: Sequence[Format]) -> Choice:
    folder = path.parent
    entries = _entries(folder) if os.access(folder, os.R_OK) else [(path.name, path)]
    listing = _listing(uri, folder, entries)
    beside = partial(os.path.join, os.path.dirname(uri))
    try:
        return choose_file(replace(listing, address=beside), path.name, formats)
    except RefusedError:
        if not _is_whole(uri, path, formats):
            raise
        return Choice("", (path.name,), path.stem)


def _unread(home: Path, files: Mapping[str, Path], formats: Sequence[Format]) -> Iterator[Problem]:
    """A note on every file that is not read because an alternative that the format prefers is there."""
    for patterns in (patterns for form in formats for patterns in form.patterns):
        for name in patterns:
            if not files.keys().isdisjoint(patterns) and name not in files and (home / name).is_file():
                found = f"it is not read: {', '.join(files.keys() & set(patterns))} is there and comes first"
                yield Problem("file-ignored", str(home / name), found, severity="note")


def _is_whole(uri: str, path: Path, formats: Sequence[Format]) -> bool:
    """True where a format of single-file checkpoints recognises the file by its content, whatever its name."""
    bundle = Bundle(uri, path.stem, {path.name: path})
    return any(fmt.detect(bundle) for fmt in formats if len(fmt.patterns) == 1)


def _listing(uri: str, folder: Path, entries: Sequence[tuple[str, Path]]) -> Listing:
    unreadable = {name: kind for name, path in entries if (kind := _special(path))}
    files = {name: path.stat().st_size for name, path in entries if name not in unreadable and path.is_file()}
    count, peek = partial(count_tensors, folder), peek_into(folder)
    return Listing(uri, files, partial(os.path.join, uri), unreadable, count, peek, lambda name: peek(name)[0])


def _entries(folder: Path) -> list[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        return sorted((entry.name, folder / entry.name) for entry in entries)


def _below(uri: str, entries: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """The entries of the folders among ``entries``; a folder that may not be read is left out."""
    folders = [(name, path) for name, path in entries if not _special(path) and path.is_dir()]
    if len(folders) > _MAX_FOLDERS:
        raise refuse("several-adapters", uri, f"there are {len(folders)} folders in it", "an adapter's own folder")
    for name, path in folders:
        if os.access(path, os.R_OK | os.X_OK):
            yield from ((f"{name}/{inner}", file) for inner, file in _entries(path))


def _require_readable(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise refuse("permission-denied", path, "this file may not be read", remedy="Ask for read access.")


def _name(folder: Path) -> str:
    """A folder's name as it was typed; for ``.`` and ``..``, that of the folder they stand for."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name or "adapter"


SOURCE = Source(name="local", claims=claims, fetch=fetch, config=config)
