"""A base's folder: on this disk, or in the Hub's cache, fetched if it is not there yet."""

from __future__ import annotations

import os
from pathlib import Path

from adaptrix.errors import AdaptrixError, Problem, UsageError
from adaptrix.merging.base import CARRIED, INDEX, SINGLE, Base, open_base
from adaptrix.sources import local
from adaptrix.sources.hub_address import Address, parse
from adaptrix.sources.hub_errors import unreachable
from adaptrix.workflow import Workshop

_WEIGHTS = (SINGLE, INDEX, "model-*-of-*.safetensors")


def base_folder(uri: str) -> Path | None:
    """The folder of a base on this disk; None for one on the Hub. Raises :class:`UsageError` for a file."""
    if not local.claims(uri):
        return None
    path = Path(uri).expanduser()
    if path.is_file():
        found, remedy = "this is a file", "Name the folder that it is in."
        raise UsageError(Problem("base", uri, found, "a folder with a model's config and weights", remedy))
    return path


def fetch_base(uri: str, workshop: Workshop) -> Base:
    """A base with its weights; nothing but the model's own files is fetched. Raises :class:`AdaptrixError`."""
    config = workshop.base_config(uri)
    folder = base_folder(uri)
    if folder is not None:
        return open_base(folder, uri, config)
    address = parse(uri)
    snapshot = _snapshot(address)
    return open_base(snapshot / address.inner, uri, config, snapshot.name)


def _snapshot(address: Address) -> Path:
    """The snapshot in the Hub's cache; its own settings (token, offline, endpoint) are honoured by its client."""
    from huggingface_hub import HfApi

    inner = f"{address.inner}/" if address.inner else ""
    patterns = [inner + pattern for pattern in (*_WEIGHTS, *CARRIED)]
    try:
        api = HfApi(library_name="adaptrix")
        found = api.snapshot_download(address.repo, revision=address.revision, allow_patterns=patterns)
        return Path(os.fspath(found))
    except AdaptrixError:
        raise
    except Exception as error:  # raised on, reworded: the client and its HTTP library share no base class
        raise unreachable(error, address) from error
