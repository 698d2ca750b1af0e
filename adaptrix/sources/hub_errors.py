"""Errors of the Hub's client, turned into problems that say what to do.

The client's exceptions are recognised by class name and status, along the whole chain of causes: it
wraps the one that matters, and the HTTP library that it builds on has changed more than once.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from adaptrix.errors import Problem, UnreachableError
from adaptrix.sources.hub_address import Address

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_NETWORK = "Check the network, the proxy, and HF_ENDPOINT if it is set.{here}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
#: code -> (what was found, what to do); {repo} {revision} {hub} {page} {cache} {detail} {status} are filled in
_SAYINGS = {
    "hub-gated": (
        "access to this repository has to be granted by its owner",
        f"Accept its terms at {{page}}, then {_LOGIN}.",
    ),
    "hub-not-found": (
        "there is no model {repo} at {hub}, or it is private",
        f"Check the name; for a private one, {_LOGIN}.{{hint}}",
    ),
    "hub-revision-missing": (
        "{repo} has no revision {revision}",
        "Branches and tags are listed at {page}/tree/main; the revision goes last: owner/name/folder@revision.",
    ),
    "hub-file-missing": ("{repo} has no such file: {detail}", "See {page}/tree/main."),
    "hub-disabled": ("the Hub has disabled this repository", "Its page may say why: {page}."),
    "hub-offline": (
        "it is not in the cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it",
        "Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or pass a folder.",
    ),
    "hub-bad-token": (
        "the Hub does not accept the token in use",
        "Log in again with `hf auth login`, or correct HF_TOKEN.",
    ),
    "hub-forbidden": ("the token in use may not read this repository", f"See {{page}}, or {_LOGIN} again."),
    "hub-rate-limit": ("the Hub asks for fewer requests", f"Wait some minutes; the limit is higher if you {_LOGIN}."),
    "hub-server-error": ("the Hub answered with an error of its own (HTTP {status})", "Try again later."),
    "hub-refusal": ("the Hub refused the request (HTTP {status}): {detail}", "See {page}."),
    "hub-dns": ("the name of {hub} cannot be resolved", _NETWORK),
    "hub-refused": ("{hub} does not accept connections", _NETWORK),
    "hub-tls": ("no secure connection to {hub}: {detail}", "Check the clock, the proxy and SSL_CERT_FILE."),
    "hub-timeout": (
        "{hub} does not answer in time",
        "Try again; HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT set the limits.",
    ),
    "hub-unreachable": ("{hub} cannot be reached: {detail}", _NETWORK),
    "disk-full": ("the disk is full: {detail}", "Free some room, or set HF_HOME to a larger disk (now {cache})."),
    "cache-unwritable": (
        "the cache cannot be written: {detail}",
        "Set HF_HOME to a folder of your own (now {cache}).",
    ),
    "hub-bad-answer": ("{hub} does not answer as a Hub does: {detail}", _NETWORK),
    "hub-incomplete": ("a file did not arrive whole: {detail}", "Try again."),
    "hub-failed": ("it could not be fetched: {detail}", "Try again, or download it and pass the folder."),
}

_Test = Callable[[BaseException], bool]


def _named(*names: str) -> _Test:
    return lambda error: any(cls.__name__ in names for cls in type(error).__mro__)


def _status(low: int, high: int) -> _Test:
    return lambda error: low <= getattr(getattr(error, "response", None), "status_code", 0) <= high


def _errno(*numbers: int) -> _Test:
    return lambda error: isinstance(error, OSError) and error.errno in numbers


#: in order, the more specific first
_TESTS: tuple[tuple[str, _Test], ...] = (
    ("hub-gated", _named("GatedRepoError")),
    ("hub-not-found", _named("RepositoryNotFoundError")),
    ("hub-revision-missing", _named("RevisionNotFoundError")),
    ("hub-file-missing", _named("RemoteEntryNotFoundError")),
    ("hub-disabled", _named("DisabledRepoError")),
    ("hub-offline", _named("OfflineModeIsEnabled")),
    ("hub-bad-token", _status(401, 401)),
    ("hub-forbidden", _status(403, 403)),
    ("hub-rate-limit", _status(429, 429)),
    ("hub-server-error", _status(500, 599)),
    ("hub-refusal", _status(400, 499)),
    ("hub-dns", _named("gaierror")),
    ("hub-refused", lambda error: isinstance(error, ConnectionRefusedError)),
    ("hub-tls", _named("SSLError")),
    ("hub-timeout", _named("TimeoutException", "TimeoutError", "Timeout")),
    ("hub-unreachable", _named("TransportError", "ConnectionError", "InvalidURL")),
    ("disk-full", _errno(*_FULL)),
    ("cache-unwritable", _errno(*_UNWRITABLE)),
    ("hub-bad-answer", _named("FileMetadataError", "JSONDecodeError", "KeyError", "TooManyRedirects")),
    ("hub-incomplete", lambda error: "Consistency check failed" in str(error)),
    ("hub-failed", _named("BaseException")),
)


def unreachable(error: BaseException, address: Address) -> UnreachableError:
    """The client's ``error`` about ``address`` as an ``UnreachableError`` with a code, a reason and a remedy."""
    chain = list(_chain(error))
    code, cause = next((code, link) for code, test in _TESTS for link in chain if test(link))
    return saying(code, address, _detail(cause), getattr(getattr(cause, "response", None), "status_code", 0))


def saying(code: str, address: Address, detail: str = "", status: int = 0) -> UnreachableError:
    """The error ``code`` about ``address``.

    ``detail``: the client's own words, for codes whose text quotes them; ``status``: the HTTP status, 0 if none.
    """
    from huggingface_hub import constants

    found, remedy = _SAYINGS[code]
    values = {
        "repo": address.repo,
        "revision": address.revision or constants.DEFAULT_REVISION,
        "hub": constants.ENDPOINT,
        "page": f"{constants.ENDPOINT}/{address.repo}",
        "cache": constants.HF_HUB_CACHE,
        "hint": _hint(address),
        "here": "" if Path(address.repo).exists() else f" There is no folder {address.repo} here.",
        "detail": detail,
        "status": status,
    }
    return UnreachableError(Problem(code, str(address), found.format_map(values), "", remedy.format_map(values)))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, even where that was suppressed: the HTTP library hides the socket's error."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _detail(error: BaseException) -> str:
    """One line of the error's own words, without the token: a header that cannot be sent is quoted in full."""
    words = " ".join(str(error).split()) or type(error).__name__
    return re.sub("Bearer .*", "Bearer …", words)[:300]


def _hint(address: Address) -> str:
    """A hint that a path may have been meant: its first folder is here, or it ends like a file; else empty."""
    first = address.repo.partition("/")[0]
    if Path(first).is_dir():
        return f" If a path was meant: the folder {first} is here, but not {address.repo} in it."
    is_file = address.name.endswith((".safetensors", ".bin", ".json"))
    return f" If a path was meant: there is no folder {first} here." if is_file else ""
