"""Errors of the connection to the Hub, with messages that say what to do.

The client's exceptions are distinguished by class name and status, along the whole chain of causes: it
wraps the interesting one, and the HTTP library that it builds on has changed more than once.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from adaptrix.errors import Problem, UnreachableError
from adaptrix.sources.hub_address import Address
from adaptrix.sources.near import meant

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_NETWORK = "Check the network, the proxy, and HF_ENDPOINT if it is set.{here}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
#: cause -> (code, what was found, what to do); {repo} {revision} {hub} {page} {cache} {detail} {status} are filled in
_SAYINGS = {
    "gated": (
        "hub-access",
        "access to this repository has to be granted by its owner",
        f"Accept its terms at {{page}}, then {_LOGIN}.",
    ),
    "not-found": (
        "hub-not-found",
        "there is no model {repo} at {hub}, or it is private",
        f"Check the name; for a private one, {_LOGIN}.{{hint}}",
    ),
    "revision-missing": (
        "hub-revision-missing",
        "{repo} has no revision {revision}",
        "Branches and tags are listed at {page}/tree/main; the revision goes last: owner/name/folder@revision.",
    ),
    "file-missing": ("hub-file-missing", "{repo} has no such file: {detail}", "See {page}/tree/main."),
    "disabled": ("hub-access", "the Hub has disabled this repository", "Its page may say why: {page}."),
    "offline": (
        "hub-offline",
        "it is not in the cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it",
        "Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or pass a folder.",
    ),
    "bad-token": (
        "hub-access",
        "the Hub does not accept the token in use",
        "Log in again with `hf auth login`, or correct HF_TOKEN.",
    ),
    "forbidden": ("hub-access", "the token in use may not read this repository", f"See {{page}}, or {_LOGIN} again."),
    "rate-limit": (
        "hub-rate-limit",
        "the Hub asks for fewer requests",
        f"Wait some minutes; the limit is higher if you {_LOGIN}.",
    ),
    "server-error": (
        "hub-server-error",
        "the Hub answered with an error of its own (HTTP {status})",
        "Try again later.",
    ),
    "refusal": ("hub-failed", "the Hub refused the request (HTTP {status}): {detail}", "See {page}."),
    "dns": ("hub-unreachable", "the name of {hub} cannot be resolved", _NETWORK),
    "refused": ("hub-unreachable", "{hub} does not accept connections", _NETWORK),
    "tls": (
        "hub-unreachable",
        "no secure connection to {hub}: {detail}",
        "Check the clock, the proxy and SSL_CERT_FILE.",
    ),
    "timeout": (
        "hub-unreachable",
        "{hub} does not answer in time",
        "Try again; HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT set the limits.",
    ),
    "unreachable": ("hub-unreachable", "{hub} cannot be reached: {detail}", _NETWORK),
    "disk-full": (
        "disk-full",
        "the disk is full: {detail}",
        "Free some room, or set HF_HOME to a larger disk (now {cache}).",
    ),
    "cache-unwritable": (
        "permission-denied",
        "the cache cannot be written: {detail}",
        "Set HF_HOME to a folder of your own (now {cache}).",
    ),
    "bad-answer": ("hub-unreachable", "{hub} does not answer as a Hub does: {detail}", _NETWORK),
    "incomplete": ("hub-unreachable", "a file did not arrive whole: {detail}", "Try again."),
    "failed": ("hub-failed", "it could not be fetched: {detail}", "Try again, or download it and pass the folder."),
}

_Test = Callable[[BaseException], bool]


def _named(*names: str) -> _Test:
    return lambda error: any(cls.__name__ in names for cls in type(error).__mro__)


def _status(low: int, high: int) -> _Test:
    return lambda error: low <= getattr(getattr(error, "response", None), "status_code", 0) <= high


def _errno(*numbers: int) -> _Test:
    return lambda error: isinstance(error, OSError) and error.errno in numbers


#: in order: what says more comes first
_TESTS: tuple[tuple[str, _Test], ...] = (
    ("gated", _named("GatedRepoError")),
    ("not-found", _named("RepositoryNotFoundError")),
    ("revision-missing", _named("RevisionNotFoundError")),
    ("file-missing", _named("RemoteEntryNotFoundError")),
    ("disabled", _named("DisabledRepoError")),
    ("offline", _named("OfflineModeIsEnabled")),
    ("bad-token", _status(401, 401)),
    ("forbidden", _status(403, 403)),
    ("rate-limit", _status(429, 429)),
    ("server-error", _status(500, 599)),
    ("refusal", _status(400, 499)),
    ("dns", _named("gaierror")),
    ("refused", lambda error: isinstance(error, ConnectionRefusedError)),
    ("tls", _named("SSLError")),
    ("timeout", _named("TimeoutException", "TimeoutError", "Timeout")),
    ("unreachable", _named("TransportError", "ConnectionError", "InvalidURL")),
    ("disk-full", _errno(*_FULL)),
    ("cache-unwritable", _errno(*_UNWRITABLE)),
    ("bad-answer", _named("FileMetadataError", "JSONDecodeError", "KeyError", "TooManyRedirects")),
    ("incomplete", lambda error: "Consistency check failed" in str(error)),
    ("failed", _named("BaseException")),
)


def unreachable(error: BaseException, address: Address) -> UnreachableError:
    """The error to raise for the client's ``error`` while it fetched ``address``."""
    chain = list(_chain(error))
    cause, link = next((cause, link) for cause, test in _TESTS for link in chain if test(link))
    return saying(cause, address, _detail(link), getattr(getattr(link, "response", None), "status_code", 0))


def saying(cause: str, address: Address, detail: str = "", status: int = 0) -> UnreachableError:
    """The error about ``address`` that one of the causes above makes, worded."""
    from huggingface_hub import constants

    code, found, remedy = _SAYINGS[cause]
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
    said = f"{remedy.format_map(values)} {meant(_path(address))}".strip()
    return UnreachableError(Problem(code, str(address), found.format_map(values), "", said))


def _path(address: Address) -> str:
    return f"{address.repo}/{address.inner}".rstrip("/")


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
    """A hint for an address that may be meant as a path: its first folder exists, or it ends as a file does."""
    first = address.repo.partition("/")[0]
    if Path(first).is_dir():
        return f" If a path was meant: the folder {first} is here, but not {address.repo} in it."
    is_file = address.name.endswith((".safetensors", ".bin", ".json"))
    return f" If a path was meant: there is no folder {first} here." if is_file else ""
