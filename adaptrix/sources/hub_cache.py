"""The place of the files of the Hub's client, which is all that is read of a repository."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from adaptrix.errors import refuse
from adaptrix.sources.hub_address import Address


def require_inside(files: Iterable[Path], address: Address) -> None:
    """Raises :class:`RefusedError` for a file of a snapshot that is not in the client's cache.

    The client names files by what the server answers (ETags) and links to them: an answer made for it leads out of the
    cache, to a file of this machine that is then taken for the adapter's.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)  # a repository's folder may be a link to another disk
    homes = [os.path.realpath(home) for home in (cache, cache / f"models--{address.repo.replace('/', '--')}")]
    for file in files:
        real = os.path.realpath(file)
        if not any(os.path.commonpath([home, real]) == home for home in homes):
            found = f"the client's file leads to {real}, which is outside its cache"
            remedy = "Delete the repository's folder in the cache, and do not trust the server that answered."
            raise refuse("hub-failed", str(address.at(file.name)), found, f"a file in {cache}", remedy)
