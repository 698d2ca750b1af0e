"""Addresses of repositories on the Hub, and of folders and files in them, as people type them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from adaptrix.errors import Problem, UsageError

_PROTOCOL = "hf://"
#: the Hub's other kinds of repository: ``datasets/owner/name`` is no folder of a model
_OTHER_KINDS = ("datasets", "spaces", "kernels", "buckets")
_CLAIM = re.compile(r"(?:hf://|https?://|[A-Za-z0-9_][\w.\-]*(?:/[^/@\s\\]+)*/?(?:@\S*)?$)", re.ASCII)
_REVISION = re.compile(r"(?![/-])(?!.*(?:\.\.|//|/$|@\{))[^\s~^:?*\[\\]+")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository, or a folder or file in it (``inner``), at a revision (the default branch if none)."""

    repo: str
    inner: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        path = f"{self.repo}/{self.inner}" if self.inner else self.repo
        return f"{path}@{self.revision}" if self.revision else path

    def at(self, path: str) -> Address:
        """The address of ``path`` in the same repository."""
        return replace(self, inner=path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return (self.inner or self.repo).rpartition("/")[2]


def is_address(uri: str) -> bool:
    """True where ``uri`` may be an address on the Hub; :func:`parse` then says what is wrong with it, if anything."""
    return uri.isprintable() and _CLAIM.match(uri) is not None


def parse(uri: str) -> Address:
    """``[hf://]owner/name[/folder or file][@revision]``, or the address of a page of the Hub.

    Raises ``UsageError`` with code ``address``.
    """
    if uri.startswith(("http://", "https://")):
        return _from_page(uri)
    path, at, revision = uri.removeprefix(_PROTOCOL).partition("@")
    if uri.startswith(_PROTOCOL):
        path = path.removeprefix("models/")
    parts = path.rstrip("/").split("/")
    if parts[0] in _OTHER_KINDS and len(parts) > 2:
        raise _off(uri, f"this is one of the {parts[0]} of the Hub", "a model repository")
    address = Address("/".join(parts[:2]), "/".join(parts[2:]), revision if at else None)
    _check(uri, address)
    return address


def _check(uri: str, address: Address) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(address.repo)
    except HFValidationError as error:
        raise _off(uri, f"no repository has such a name: {str(error).rstrip('.')}") from error
    if address.inner and any(part in ("", ".", "..") for part in address.inner.split("/")):
        raise _off(uri, "the folder's path has a part that is empty, '.' or '..'")
    if address.revision is not None and not _REVISION.fullmatch(address.revision):
        raise _off(uri, "what follows '@' is no revision", "a branch, a tag or a commit")


def _from_page(uri: str) -> Address:
    """From the address of a repository's page, or of a folder or file on it, as browsers show it."""
    from huggingface_hub import constants

    try:
        from huggingface_hub.errors import HfUriError
        from huggingface_hub.utils import parse_hf_uri  # type: ignore[attr-defined]
    except ImportError as error:  # older clients
        raise _off(uri, "the installed huggingface-hub cannot take the address of a page apart") from error
    try:
        page = parse_hf_uri(uri, endpoint=constants.ENDPOINT)
    except HfUriError as error:
        raise _off(uri, "this is not the page of a repository, folder or file on the Hub") from error
    if page.type != "model":
        raise _off(uri, f"this is a {page.type} of the Hub", "a model repository")
    address = Address(page.id, page.path_in_repo.rstrip("/"), page.revision)
    _check(uri, address)
    return address


def _off(uri: str, found: str, expected: str = "") -> UsageError:
    remedy = "An adapter on the Hub is owner/name, owner/name/folder or owner/name@revision."
    return UsageError(Problem("address", uri, found, expected, remedy))
