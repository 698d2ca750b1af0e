"""Resolution of the spectral deltas of a live model, which reads each weight once, for the first delta on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from adaptrix.base.svd.cache import Decomposition, SvdCache
from adaptrix.base.svd.resolving import decomposed, require_weight, resolve, within
from adaptrix.delta import Basis, Spectral
from adaptrix.tensor import FileRange, Tensor


class Known:
    """:func:`resolve` with a memory of the weights that it has seen: it keeps their S, and the paths of U and V."""

    def __init__(self, cache: SvdCache) -> None:
        self._cache = cache
        self._seen: dict[tuple[Hashable, Basis, bool], Decomposition] = {}

    def hold(self, delta: Spectral, weight: Callable[[], Tensor], *, of: Hashable, turned: bool, where: str) -> None:
        """Raises :class:`RefusedError` unless the weight has the hash that the delta records; decomposes nothing."""
        if (of, delta.basis, turned) not in self._seen:
            require_weight(delta, weight(), turned=turned, where=where)

    def __call__(
        self, delta: Spectral, weight: Callable[[], Tensor], *, of: Hashable, turned: bool, where: str
    ) -> Spectral:
        """The delta with its U and V; raises as :func:`resolve` does.

        - ``weight``: reads the base's tensor, which is called only for a weight not seen before.
        - ``of``: identifies the weight and the state of its numbers.
        - ``turned``: the weight is stored ``[in, out]``.
        - ``where``: names it in messages.

        A delta that has its U and V is checked against the weight every time.
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
    """True while U and V are in the cache's folder."""
    return all(not isinstance(one.data, FileRange) or one.data.path.exists() for one in (own.U, own.Vt))
