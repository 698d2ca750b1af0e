"""From adapters that are loaded to what is in force: made once and remembered, and in slots if there are any."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from adaptrix.runtime.selection import BASE, Loaded, Selection, routed, weighted
from adaptrix.runtime.slots import Kernels, Slots, Wanted

#: (weight, adapter) for each of a sum
Terms = Sequence[tuple[float, Loaded]]
#: sums and routes that are remembered: each is a copy of the factors of all its adapters
_COPIES = 4


class Selector:
    """Makes selections. Whoever calls holds the lock of the users, and keeps it until the user is counted."""

    def __init__(self, slots: Slots | None = None) -> None:
        self.slots = slots
        self._alone: dict[tuple[Any, ...], Selection] = {}
        self._copies: OrderedDict[tuple[Any, ...], Selection] = OrderedDict()

    def weighted(self, terms: Terms) -> Selection:
        """A weighted sum of adapters; the base for none."""
        key = tuple((loaded.version, weight) for weight, loaded in terms)
        if self.slots is None or not terms:
            return self._remembered(key, lambda: weighted(terms), alone=_is_alone(terms)) if terms else BASE
        (seat,) = self.slots.seat({key: partial(_low_rank, terms)})
        made = partial(replace, weighted(terms), kernels=seat.kernels, seats=(seat,))
        return self._remembered((seat,), made, alone=True)

    def routed(self, rows: Sequence[Loaded | None]) -> Selection:
        """One adapter, or the base, for each row of a batch."""
        if self.slots is None:
            return self._remembered(tuple(row and row.version for row in rows), lambda: routed(rows))
        present = list({id(row): row for row in rows if row is not None}.values())
        wanted: Wanted = {((row.version, 1.0),): partial(_low_rank, [(1.0, row)]) for row in present}
        seats = dict(zip(map(id, present), self.slots.seat(wanted), strict=True))
        by_row = tuple(None if row is None else seats[id(row)] for row in rows)
        seated = [row and replace(row, kernels=seats[id(row)].kernels) for row in rows]
        return self._remembered(by_row, lambda: replace(routed(seated), adapters=tuple(present), seats=by_row))

    def forget(self, loaded: Loaded) -> None:
        """Makes nothing of this adapter any more."""
        for remembered in (self._alone, self._copies):
            for key in [key for key, made in remembered.items() if loaded in made.adapters]:
                del remembered[key]
        if self.slots is not None:
            self.slots.forget(loaded.version)

    def _remembered(self, key: tuple[Any, ...], make: Callable[[], Selection], *, alone: bool = False) -> Selection:
        """A selection, made once; of those that are copies the one that was wanted longest ago is forgotten first."""
        kept = self._alone if alone else self._copies
        if key not in kept:
            with torch.inference_mode(False):  # it outlives the block, and may be differentiated later
                kept[key] = make()
        if not alone:
            self._copies.move_to_end(key)
            if len(self._copies) > _COPIES:
                self._copies.popitem(last=False)
        return kept[key]


def _is_alone(terms: Terms) -> bool:
    """Whether a sum is an adapter as it was loaded."""
    return len(terms) == 1 and terms[0][0] == 1.0


def _low_rank(terms: Terms) -> Kernels:
    """The kernels of a sum of adapters that were let into slots, which have no others."""
    return cast(Kernels, weighted(terms).kernels)
