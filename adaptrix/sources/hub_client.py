"""The Hub's own client, imported when it is first needed, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adaptrix.errors import AdaptrixError, Problem, UsageError
from adaptrix.sources.hub_address import Address
from adaptrix.sources.hub_errors import unreachable

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def require_client(uri: str) -> None:
    """Raises ``UsageError`` where the client cannot be imported: it reads HF_ENDPOINT then, which may be malformed."""
    try:
        import huggingface_hub.constants  # noqa: F401
    except (ImportError, ValueError) as error:
        found = f"the Hub's client does not start: {error}"
        raise UsageError(
            Problem("hub-client", uri, found, "", "Check HF_ENDPOINT and the other HF_ variables.")
        ) from error


def api() -> HfApi:
    """The client under the name of this library."""
    from huggingface_hub import HfApi

    return HfApi(library_name="adaptrix")


@contextmanager
def asking(address: Address) -> Iterator[None]:
    """Turns any error of the client into an ``UnreachableError``."""
    try:
        yield
    except AdaptrixError:
        raise
    except Exception as error:  # raised again, reworded: the client and its HTTP library share no base class
        raise unreachable(error, address) from error
