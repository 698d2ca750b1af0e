"""Outputs that appear whole or not at all.

The bytes go to a hidden neighbour, ``.adaptrix-<random><suffix>``, which is renamed to the output when all
of it is written. Whatever stops the work before, Ctrl-C included, removes the neighbour and leaves what was
there as it was. A folder that replaces another changes places with it in one step. No fsync is made, as cp makes
none: it would cost as much as the writing, and the source is still there.

Where the system has no such step (:mod:`adaptrix.exchange`), the old folder is first renamed to
``.<name>.adaptrix-old``. If the power fails or the process is killed right then, that is where it is, and the next
output of the name puts it back before anything else.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaptrix.errors import Problem, RefusedError, UsageError, refuse
from adaptrix.exchange import exchange
from adaptrix.special_files import SPECIAL_FILES, old_folder
from adaptrix.wording import some

_REFUSALS: dict[int, tuple[str, str, str]] = {
    errno.ENOSPC: ("disk-full", "the disk is full", "Free some space, or write elsewhere."),
    errno.EDQUOT: ("disk-full", "your disk quota is used up", "Free some space, or write elsewhere."),
    errno.EFBIG: ("disk-full", "the system does not allow a file this large", "Write to another disk."),
    errno.EACCES: ("permission-denied", "permission denied", "Write elsewhere, or change the permissions."),
    errno.EPERM: ("permission-denied", "the system does not permit it", "Write elsewhere, or change the permissions."),
    errno.EROFS: ("permission-denied", "the disk is read-only", "Write elsewhere."),
    errno.ENAMETOOLONG: ("output-invalid", "the name is too long for the disk", "Choose a shorter one."),
    errno.ELOOP: ("output-invalid", "the path is a circle of symbolic links", "Write elsewhere."),
    errno.EIO: ("system", "the disk reports an error", "Check the disk, or write elsewhere."),
}
#: where a hard link cannot be made: another kind of disk, or none that has links
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL}

#: what a killed run leaves in a folder that it wrote files into, one at a time
_LEFT = re.compile(r"\.adaptrix-[0-9a-f]{12}(\..*)?", re.DOTALL)


@contextmanager
def output(path: Path, *, force: bool = False, holds: Collection[str] = (), makes: bool = False) -> Iterator[Path]:
    """A path beside ``path`` at which the caller creates a file or a folder; it becomes ``path`` at the end.

    An existing ``path`` is a :class:`UsageError` unless ``force``, which replaces a file by a file, and a
    folder by a folder if every name in the old one is among ``holds``. Of a symbolic link, the file or folder that it
    points to is replaced, as cp does, and the link stays; a link to nothing, and a device, pipe or socket under any
    name, is a :class:`UsageError`. ``makes``: the folders around ``path`` are made where they are missing, and go again
    if it does not come to be. What the system objects to (disk full, no permission …) is a
    :class:`RefusedError`; other errors pass through.
    """
    with _refusing(path, path):
        path = _followed(path)
    work = path.parent / f".adaptrix-{os.urandom(6).hex()}{path.suffix[:16]}"
    with _refusing(work, path):
        _check(path, force, holds, makes)
        with _folders(path.parent):
            try:
                yield work
                _publish(work, path, force, holds)
            finally:
                _remove(work)


def require_free(path: Path, *, force: bool = False, holds: Collection[str] = (), makes: bool = False) -> None:
    """Raises what :func:`output` would raise before the work begins, for callers that download first."""
    with _refusing(path, path):
        _check(_followed(path), force, holds, makes)


def _followed(path: Path) -> Path:
    """The path that a symbolic link leads to, or the path itself. Raises :class:`UsageError` for what is no place for
    an output: a link to nothing, and a device, pipe or socket, which a rename would replace."""
    if "\0" in str(path):
        raise _usage("output-invalid", path, "a name cannot hold a NUL", "Choose another name.")
    link = path.is_symlink()
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if link:
            found = f"this is a link to {os.readlink(path)!r}, which is not there"
            raise _usage("output-invalid", path, found, "Remove the link, or name a file to write.") from None
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = SPECIAL_FILES.get(stat.S_IFMT(mode), "no file")
        found = f"this is {'a link to ' * link}{kind}"
        raise _usage("output-invalid", path, found, "Name a file to write.")
    return Path(os.path.realpath(path)) if link else path


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """A block in which what the system objects to, of a path, is a :class:`RefusedError`."""
    with _refusing(path, path):
        yield


@contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """Makes a folder with those around it for a block; where the block fails, those that were made go again."""
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something into it
            for each in missing:
                each.rmdir()
        raise


@contextmanager
def _refusing(work: Path, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if refusal := _refusal(error, work, path):
            raise refusal from None
        raise


def _refusal(error: OSError, work: Path, path: Path) -> RefusedError | None:
    """A system error as a refusal; None for one that is not about files (a network's, say)."""
    if error.errno not in _REFUSALS:
        return None
    code, found, remedy = _REFUSALS[error.errno]
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(path)
    return refuse(code, name.replace(str(work), str(path)), found, remedy=remedy)


def _check(path: Path, force: bool, holds: Collection[str], makes: bool) -> None:
    """Everything that can be known before the work begins."""
    if path.name in ("", ".."):
        raise _usage("output-invalid", path, "this is no name for an output", "Name a file or folder in it.")
    _put_back(path)
    old = _kind(path)
    if old is not None and not force:
        raise _exists(path)
    if old == "folder" and holds:
        _require_replaceable(path, holds)
    home = path.parent
    while makes and not os.path.lexists(home):
        home = home.parent
    if not home.is_dir():
        found = "this is no folder" if os.path.lexists(home) else "there is no such folder"
        raise _usage("output-invalid", home, found, "Create it, or write elsewhere.")
    if not os.access(home, os.W_OK | os.X_OK):
        read_only = os.statvfs(home).f_flag & os.ST_RDONLY
        raise OSError(errno.EROFS if read_only else errno.EACCES, "", str(home))


def _usage(code: str, path: Path, found: str, remedy: str) -> UsageError:
    return UsageError(Problem(code, str(path), found, remedy=remedy))


def _exists(path: Path) -> UsageError:
    return _usage("output-exists", path, "this exists already", "Choose another name, or pass --force to replace it.")


def _kind(path: Path) -> str | None:
    """``"folder"``, ``"file"`` (anything else), or None for nothing."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"


def _publish(work: Path, path: Path, force: bool, holds: Collection[str]) -> None:
    new, old = _kind(work), _kind(path)
    if old is not None and not force:  # it appeared during the work
        raise _exists(path)
    if old is not None and old != new:
        remedy = "Remove it first, or choose another name."
        raise _usage("output-exists", path, f"this is a {old} and would become a {new}", remedy)
    if new == "folder":
        _swap_folder(work, path, holds) if old else work.rename(path)
    elif force:
        work.replace(path)
    else:
        _rename_new(work, path)


def _rename_new(work: Path, path: Path) -> None:
    """Rename a file unless the new name exists, in one step where the disk has hard links."""
    try:
        os.link(work, path, follow_symlinks=False)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        work.rename(path)


def _swap_folder(work: Path, path: Path, holds: Collection[str]) -> None:
    """Put ``work`` in the place of the folder ``path``, and remove that; if it fails, the old one is put back."""
    _require_replaceable(path, holds)
    old = work if exchange(work, path) else _swap_by_renaming(work, path)
    unwanted = work.with_name(work.name + ".old")  # should the process be killed now, its name says what it is
    try:
        _remove(old.rename(unwanted))
    finally:  # a Ctrl-C in the middle of it
        _remove(unwanted)


def _swap_by_renaming(work: Path, path: Path) -> Path:
    """The same in two steps; the path of the old folder."""
    old = old_folder(path)
    _remove(old)  # of an earlier run that was killed after both steps
    try:
        path.rename(old)
        work.rename(path)
    except BaseException:
        _put_back(path)
        raise
    return old


def _put_back(path: Path) -> None:
    """Give the old folder its name back, where a run was stopped between the two renames that replace it."""
    if _kind(path) is None and _kind(old := old_folder(path)) == "folder":
        old.rename(path)


def _require_replaceable(folder: Path, holds: Collection[str]) -> None:
    """Raises :class:`UsageError` where a folder has anything in it that would not be written again."""
    with os.scandir(folder) as entries:
        others = sorted(e.name for e in entries if not _replaceable(e, holds))
    if others:
        found = f"this folder holds what --force does not replace: {some(others, 3)}"
        raise _usage("output-exists", folder, found, "Remove it yourself if you are sure, or choose another name.")


def _replaceable(entry: os.DirEntry[str], holds: Collection[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and (entry.name in holds or bool(_LEFT.fullmatch(entry.name)))


def _remove(work: Path) -> None:
    """Remove what is left of a file or folder, if anything; an error here would hide the one that led here."""
    with suppress(OSError):
        if _kind(work) == "folder":
            import shutil  # costs milliseconds, needed rarely

            shutil.rmtree(work, ignore_errors=True)
        else:
            work.unlink(missing_ok=True)
