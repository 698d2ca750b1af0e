"""Adapters and base configs on the Hub, by the Hub's own client: its cache, token and settings.

One request lists the repository at a commit; the choice is made from names and sizes, and only the
adapter's files are fetched. A commit whose files are in the cache costs no further request. Where the
Hub is out of reach, the commit that the branch last pointed to is looked for in the cache.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adaptrix.errors import Problem, RefusedError, UnreachableError, UsageError
from adaptrix.json_file import MAX_BYTES, read_object, too_large
from adaptrix.records import Bundle, Format, Source
from adaptrix.sources.hub_address import Address, is_address, parse
from adaptrix.sources.hub_cache import require_inside
from adaptrix.sources.hub_client import api, asking, require_client
from adaptrix.sources.hub_errors import saying
from adaptrix.sources.hub_start import starts
from adaptrix.sources.other_formats import peek_into
from adaptrix.sources.select import Listing, choose, choose_file
from adaptrix.wording import some

#: the Hub answered, or it is this disk that is at fault: an older copy from the cache would be no answer
_FINAL = ("hub-revision-missing", "hub-file-missing", "disk-full", "permission-denied")

_PLAIN = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Repo:
    """A repository at a commit: every path in it -> bytes. ``folder``: where it is in the cache, if it
    was listed there, and then it may lack files."""

    address: Address
    commit: str
    files: Mapping[str, int]
    folder: Path = Path()


def claims(uri: str) -> bool:
    """True where ``uri`` may name a repository: ``owner/name…``, ``hf://…``, a page's address, ``gpt2``."""
    return is_address(uri)


def fetch(uri: str, formats: Sequence[Format]) -> Bundle:
    """The adapter's files in the client's cache, fetched if they are not there yet, at one commit.

    Raises ``UsageError`` (``address``, ``hub-client``), ``UnreachableError`` (see
    :mod:`adaptrix.sources.hub_errors`) or ``RefusedError`` (see :mod:`adaptrix.sources.select`), the
    latter before anything is fetched.
    """
    address = _address(uri)
    if "/" not in address.repo:
        found = "an adapter on the Hub is owner/name, and there is no such folder here"
        raise UsageError(Problem("address", uri, found, "", "Check the spelling, or pass the path of its folder."))
    try:
        return _fetched(_look_up(address), formats)
    except UnreachableError as error:
        return _from_cache(address, formats, error)


def config(uri: str) -> Mapping[str, Any]:
    """A base model's config.json and nothing else. Raises as :func:`fetch` does, and those of :func:`read_object`."""
    address = _address(uri)
    path = f"{address.inner}/config.json" if address.inner else "config.json"
    try:
        file = _fetched_config(_look_up(address), path)
    except UnreachableError as error:
        cached = _cached(address)
        if cached is None or path not in cached.files or error.problems[0].code in _FINAL:
            raise
        file = cached.folder / path
        require_inside([file], address)
    return read_object(file, str(address.at(path)))


def folder(uri: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """A folder in the client's cache with the files of a model whose names match, fetched if they are not there
    yet, and their commit. Raises as :func:`fetch` does.

    Where the Hub is out of reach, what the cache has is returned, and it may lack some: the caller looks.
    """
    address = _address(uri)
    try:
        repo = _look_up(address)
    except UnreachableError as error:
        cached = _cached(address)
        if cached is None or error.problems[0].code in _FINAL or not _matching(cached, patterns):
            raise
        require_inside((cached.folder / path for path in _matching(cached, patterns)), address)
        return cached.folder / address.inner, cached.commit
    paths = _matching(repo, patterns)
    if not paths:
        raise saying("file-missing", address, " or ".join(patterns[:2]))
    files, commit = _download(repo, paths)
    return next(iter(files.values())).parent, commit


def _matching(repo: _Repo, patterns: Sequence[str]) -> list[str]:
    base = f"{repo.address.inner}/" if repo.address.inner else ""
    names = [path.removeprefix(base) for path in repo.files if path.startswith(base)]
    return [base + name for name in names if "/" not in name and any(fnmatchcase(name, p) for p in patterns)]


def quiet() -> None:
    """No progress bars and no chatter from the client, unless its own environment variables ask for them."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if "huggingface_hub" in sys.modules:  # it has read them already
        from huggingface_hub import constants, utils

        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            utils.disable_progress_bars()  # type: ignore[attr-defined]
        utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _address(uri: str) -> Address:
    """The parsed uri. Offline, a repository that is not in the cache is refused here already: starting the
    whole client takes longer than most conversions."""
    require_client(uri)
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{uri.replace('/', '--')}"
    if constants.HF_HUB_OFFLINE and _PLAIN.fullmatch(uri) and not folder.exists():
        raise saying("offline", Address(uri))
    return parse(uri)


def _look_up(address: Address) -> _Repo:
    """The repository's files at its current commit: one request."""
    with asking(address):
        from huggingface_hub import constants

        # the client's default is to wait forever
        info = api().model_info(
            address.repo, revision=address.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        if info.sha is None:
            raise saying("bad-answer", address, "no commit is named")
    return _Repo(address, info.sha, files)


def _fetched(repo: _Repo, formats: Sequence[Format]) -> Bundle:
    address, paths, label = _choice(repo, formats)
    files, commit = _download(repo, paths)
    return Bundle(str(address), label, files, commit)


def _choice(repo: _Repo, formats: Sequence[Format]) -> tuple[Address, tuple[str, ...], str]:
    """The adapter's address, the paths of its files and its name."""
    address = repo.address
    single = address.inner in repo.files
    folder = address.inner.rpartition("/")[0] if single else address.inner
    base = f"{folder}/" if folder else ""
    files = {path.removeprefix(base): size for path, size in repo.files.items() if path.startswith(base)}
    if not files and address.inner:
        top = sorted({path.partition("/")[0] for path in repo.files})
        raise saying("file-missing", address, f"{address.inner}; there is {some(top)}")
    listing = Listing(str(address), files, lambda path: str(address.at(base + path)), start=_start(repo, base))
    name = address.inner.rpartition("/")[2]
    choice = choose_file(listing, name, formats) if single else choose(listing, formats)
    home = address.at(base + choice.folder if choice.folder else folder)
    return address if single else home, tuple(base + path for path in choice.paths), choice.label or home.name


def _start(repo: _Repo, base: str) -> Callable[[str], bytes]:
    """A reader of the starts of a repository's files, from the cache where it was listed there."""
    if repo.folder != Path():
        return lambda name: peek_into(repo.folder / base)(name)[0]
    read = starts(repo.address, repo.commit, base)

    def asked(name: str) -> bytes:
        with asking(repo.address):
            return read(name)

    return asked


def _download(repo: _Repo, paths: Sequence[str]) -> tuple[dict[str, Path], str]:
    """The files at one commit, and that commit. The first is requested by the revision's name, so that the
    client notes in its cache which commit that is and finds it again offline."""
    with asking(repo.address):
        first = _by_name(repo, paths[0])
        commit = _commit(first, paths[0])  # not the listing's, which a push may have changed meanwhile
        get = api().hf_hub_download
        rest = [Path(get(repo.address.repo, path, revision=commit)) for path in paths[1:]]
    require_inside([first, *rest], repo.address)
    return {path.rpartition("/")[2]: file for path, file in zip(paths, [first, *rest], strict=True)}, commit


def _by_name(repo: _Repo, path: str) -> Path:
    """A file by branch or tag; no request where the cache has it at the commit that was listed."""
    from huggingface_hub import try_to_load_from_cache

    address = repo.address
    cached = try_to_load_from_cache(address.repo, path, revision=address.revision)
    if isinstance(cached, str) and _commit(Path(cached), path) == repo.commit:
        return Path(cached)
    return Path(api().hf_hub_download(address.repo, path, revision=address.revision))


def _commit(file: Path, path: str) -> str:
    """The commit of a file in the cache, which is laid out ``snapshots/<commit>/<path>``."""
    return file.parents[path.count("/")].name


def _fetched_config(repo: _Repo, path: str) -> Path:
    if path not in repo.files:
        raise saying("file-missing", repo.address, path)
    if repo.files[path] > MAX_BYTES:
        raise too_large(str(repo.address.at(path)), repo.files[path])
    return _download(repo, [path])[0]["config.json"]


def _from_cache(address: Address, formats: Sequence[Format], error: UnreachableError) -> Bundle:
    """An earlier run's files, from the cache, with a problem that says why. Raises ``error`` where some are missing."""
    problem = error.problems[0]
    cached = _cached(address)
    if cached is None or problem.code in _FINAL:
        raise error
    try:
        home, paths, label = _choice(cached, formats)
    except (RefusedError, UnreachableError) as incomplete:
        if incomplete.problems[0].code == "several-adapters":
            raise
        raise error from incomplete
    files = {path.rpartition("/")[2]: cached.folder / path for path in paths}
    require_inside(files.values(), address)
    return Bundle(str(home), label, files, cached.commit, (_stale(problem, cached.commit),))


def _stale(problem: Problem, commit: str) -> Problem:
    chosen = problem.code == "hub-offline"
    found = "offline as HF_HUB_OFFLINE says" if chosen else problem.found
    remedy = f"The copy in the cache is used, which is commit {commit[:12]}."
    return Problem("hub-from-cache", problem.where, found, "", remedy, "note" if chosen else "warning")


def _cached(address: Address) -> _Repo | None:
    """The repository's files in the cache, at the commit that its revision last pointed to."""
    with asking(address):
        folder = _snapshot(address)
        if folder is None:
            return None
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return _Repo(address, folder.name, files, folder)


def _snapshot(address: Address) -> Path | None:
    """The folder in the cache, which may lack files; no request is made."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(api().snapshot_download(address.repo, revision=address.revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)  # another program fetched some of its files
        return Path(partial) if partial else None


SOURCE = Source(name="hub", claims=claims, fetch=fetch, config=config)
