"""The first bytes of files on the Hub, by range requests: what a file is can be seen before it is fetched."""

from __future__ import annotations

from collections.abc import Callable

from adaptrix.sources.hub_address import Address

#: more than the headers that tell formats apart
START = 1 << 16
#: files of one repository that are looked into: one that has more holds models
_MOST = 16
_STATUS_OF_A_PART = (200, 206)


def starts(address: Address, commit: str, base: str) -> Callable[[str], bytes]:
    """A reader of the starts of a repository's files; each costs a request, made once.

    - ``address``, ``commit``: the repository, at one commit.
    - ``base``: the folder that the names are in, with a slash after it, or nothing.

    It returns nothing for more than 16 files, and raises what the Hub's client raises.
    """
    known: dict[str, bytes] = {}

    def read(name: str) -> bytes:
        if name not in known:
            known[name] = _start(address, commit, base + name) if len(known) < _MOST else b""
        return known[name]

    return read


def _start(address: Address, commit: str, path: str) -> bytes:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    headers = {**build_hf_headers(library_name="adaptrix"), "Range": f"bytes=0-{START - 1}"}
    url = hf_hub_url(address.repo, path, revision=commit)
    client, data = get_session(), b""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    with client.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        if response.status_code not in _STATUS_OF_A_PART:
            response.read()
        hf_raise_for_status(response)
        for piece in response.iter_bytes(START):  # a server may ignore the range and send all
            data += piece
            if len(data) >= START:
                break
    return data[:START]
