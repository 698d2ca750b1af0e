"""Deltas of a live model's weights, each of which is looked at for its first expert alone: more come while it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from adaptrix.base.svd.cache import Decomposition, SvdCache
from adaptrix.base.svd.resolving import decomposed, require_weight, resolve, within
from adaptrix.delta import Basis, Spectral
from adaptrix.tensor import FileRange, Tensor


class Known:
    """:func:`resolve`, but for the weights that it has seen. What it keeps of these is S, and where U and V lie."""

    def __init__(self, cache: SvdCache) -> None:
        self._cache = cache
        self._seen: dict[tuple[Hashable, Basis, bool], Decomposition] = {}

    def hold(self, delta: Spectral, weight: Callable[[], Tensor], *, of: Hashable, turned: bool, where: str) -> None:
        """Raises :class:`RefusedError` unless the weight is the one that the delta names; decomposes nothing."""
        if (of, delta.basis, turned) not in self._seen:
            require_weight(delta, weight(), turned=turned, where=where)

    def __call__(
        self, delta: Spectral, weight: Callable[[], Tensor], *, of: Hashable, turned: bool, where: str
    ) -> Spectral:
        """The delta with its U and V; raises as :func:`resolve` does.

        ``of`` is the same for the same weight only, and another when its numbers have changed. A delta that brings
        U and V is held to the weight whenever it comes.
        """
        if delta.resolved:
            return resolve(delta, weight(), self._cache, turned=turned, where=where)
        key = (of, delta.basis, turned)
        own = self._seen.get(key)
        if own is None or not _is_there(own):
            own = decomposed(delta, weight(), self._cache, turned=turned, where=where)
            self._seen[key] = replace(own, S=Tensor(own.S.dtype, own.S.shape, own.S.tobytes()))
        return within(delta, own, where)


def _is_there(own: Decomposition) -> bool:
    """Whether U and V are still in the cache's folder."""
    return all(not isinstance(one.data, FileRange) or one.data.path.exists() for one in (own.U, own.Vt))
