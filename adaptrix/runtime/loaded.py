"""The adapters of a session by name: choices are checked, looked up, and made into selections that are remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from numbers import Real
from typing import Any, cast

import torch

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.selection import BASE, Loaded, Selection, routed, weighted
from adaptrix.runtime.slots import Kernels, Slots, Wanted
from adaptrix.wording import nearest

#: an adapter, weights of several, or None for the base
Choice = str | Mapping[str, float] | None
#: one adapter, or None for the base, for each row of a batch
RowChoice = Sequence[str | None]
#: (weight, adapter) for each of a sum
Terms = Sequence[tuple[float, Loaded]]
#: sums and routes that are remembered: each is a copy of the factors of all its adapters
_COPIES = 4
_ROW = "one adapter, or None for the base, for each row of the batch"


class LoadedAdapters:
    """Names stand for versions: a reload puts another under the same name, and users of the old one keep it."""

    def __init__(self, users: Users, slots: Slots | None = None) -> None:
        self._users, self._selector = users, Selector(slots)
        self._loaded: dict[str, Loaded] = {}

    def __iter__(self) -> Iterator[Loaded]:
        return iter(self._loaded.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def one(self, name: object) -> Loaded:
        """The adapter of a name. Raises :class:`UsageError`."""
        return self._named([require_name(name)])[0]

    def first_layer(self, names: Sequence[str] = ()) -> float:
        """The lowest layer that any of these adapters changes, by default of all; Inf where none does."""
        among = [self.one(name) for name in names] or list(self)
        return min((weighted([(1.0, one)]).first_layer for one in among), default=inf)

    def put(self, loaded: Loaded) -> None:
        """Gives an adapter its name; the version that had it before stays only for its present users."""
        with self._users.changed:
            before = self._loaded.get(loaded.name)
            self._loaded = {**self._loaded, loaded.name: loaded}
            if before is not None:
                self._selector.forget(before)

    def drop(self, loaded: Loaded) -> None:
        """Takes an adapter's name away."""
        self._loaded = {name: kept for name, kept in self._loaded.items() if name != loaded.name}

    def forget_after_use(self, loaded: Loaded) -> None:
        """Waits for the users of an adapter that is no longer loaded, and drops what was made of it."""
        try:
            self._users.drain(loaded)
        finally:  # an interrupt ends the waiting, and the name is gone already
            with self._users.changed:
                self._selector.forget(loaded)

    def clear(self) -> None:
        """Forgets all of them, and closes their slots."""
        slots = self._selector.slots
        self._loaded, self._selector = {}, Selector()
        if slots is not None:
            slots.close()

    def chosen(self, choice: Choice | RowChoice) -> Selection:
        """The selection of a choice, for a batch or for each of its rows. Raises :class:`UsageError`."""
        by_row = isinstance(choice, Sequence) and not isinstance(choice, str)
        return self.routed(choice) if by_row else self.summed(choice)

    def summed(self, choice: object) -> Selection:
        """The selection of a choice for a whole batch. Raises :class:`UsageError`."""
        if choice is None:
            return BASE
        weights = weights_of(choice)
        terms = zip(weights.values(), self._named(weights), strict=True)
        return self._selector.weighted(sorted(terms, key=lambda term: term[1].version))

    def routed(self, rows: object) -> Selection:
        """The selection of a choice for each row of a batch. Raises :class:`UsageError`."""
        by_row = rows_of_names(rows)
        names = list(dict.fromkeys(name for name in by_row if name is not None))
        known = dict(zip(names, self._named(names), strict=True))
        return self._selector.routed([None if name is None else known[name] for name in by_row])

    def _named(self, names: Sequence[str] | Mapping[str, float]) -> list[Loaded]:
        unknown = [name for name in names if name not in self._loaded]
        if unknown:
            there = ", ".join(self._loaded) or "none"
            remedy = "session.load(name, uri) loads it."
            found = "no adapter of this name is loaded"
            raise UsageError(
                Problem(
                    "adapter-unknown",
                    name,
                    found,
                    f"one of {there}",
                    f"{nearest(str(name), self._loaded)} {remedy}".strip(),
                )
                for name in unknown
            )
        return [self._loaded[name] for name in names]


class Selector:
    """Makes selections. The caller holds the lock of the users, and keeps it until the user is counted."""

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
        self._forget_left(self.slots)
        return self._remembered(
            (seat,), lambda: replace(weighted(terms), kernels=seat.kernels, seats=(seat,)), alone=True
        )

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
        """Drops the selections that were made of this adapter, and empties those of its slots that are not in use."""
        for remembered in (self._alone, self._copies):
            for key in [key for key, made in remembered.items() if loaded in made.adapters]:
                del remembered[key]
        if self.slots is not None:
            self.slots.forget(loaded.version)

    def _forget_left(self, slots: Slots) -> None:
        """Drops the selections of slots that others lie in now: each paging makes a new one."""
        if len(self._alone) > slots.count:
            self._alone = {key: made for key, made in self._alone.items() if slots.holds(key[0])}

    def _remembered(self, key: tuple[Any, ...], make: Callable[[], Selection], *, alone: bool = False) -> Selection:
        """A selection, made once; of those that are copies the least recently used is forgotten first."""
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
    """True for a sum that is one adapter as it was loaded."""
    return len(terms) == 1 and terms[0][0] == 1.0


def _low_rank(terms: Terms) -> Kernels:
    """The kernels of a sum of adapters that were let into slots, which have no others."""
    return cast(Kernels, weighted(terms).kernels)


def weights_of(choice: object) -> dict[str, float]:
    """A choice other than the base, as weights by name. Raises :class:`UsageError` with all that is wrong."""
    if isinstance(choice, str) and choice:
        return {choice: 1.0}
    if not isinstance(choice, Mapping):
        remedy = "session.load(name, adapter) gives an adapter a name; session.route takes a list, a name a row."
        expected = "a name, weights by name, or None for the base"
        raise UsageError(Problem("option", "choice", _shown(choice), expected, remedy))
    if not choice:
        raise UsageError(Problem("option", "choice", "no weights", "at least one adapter's", "None is the base."))
    problems = [problem for name, weight in choice.items() for problem in _term_problems(name, weight)]
    if problems:
        raise UsageError(problems)
    return {name: float(weight) for name, weight in choice.items()}


def rows_of_names(rows: object) -> tuple[str | None, ...]:
    """The rows of a route. Raises :class:`UsageError` with all that is wrong."""
    if isinstance(rows, str):
        remedy = f"session.use({rows!r}) is for the whole batch, session.route([{rows!r}]) for a batch of one."
        raise UsageError(Problem("route", "route", "a string", _ROW, remedy))
    if not isinstance(rows, Iterable) or isinstance(rows, (bytes, Mapping, Set)):
        remedy = "Weighted sums are for a whole batch: session.use(weights)."
        raise UsageError(Problem("route", "route", _shown(rows), f"a list: {_ROW}", remedy))
    found = tuple(rows)
    problems = [Problem("route", f"row {number}", _shown(row), "a name, or None for the base",
                        "Weighted sums are for a whole batch: session.use(weights).")
                for number, row in enumerate(found) if not (row is None or isinstance(row, str))]  # fmt: skip
    if not found:
        problems = [Problem("route", "route", "no rows", _ROW, "session.use(None) is the base for any batch.")]
    if problems:
        raise UsageError(problems)
    return found


def require_name(name: object) -> str:
    """The name, if it is one that an adapter can have. Raises :class:`UsageError`."""
    if isinstance(name, str) and name:
        return name
    found = "an empty name" if name == "" else _shown(name)
    raise UsageError(Problem("option", "name", found, "a string of at least one character", "Name the adapter."))


def _term_problems(name: object, weight: object) -> Iterable[Problem]:
    if not isinstance(name, str):
        yield Problem("option", f"weights[{name!r}]", _shown(name), "the name of an adapter", "None is the base.")
    elif not isinstance(weight, Real):
        remedy = "float(weight) makes one of a text or a tensor, without a gradient."
        yield Problem("option", f"weights[{name!r}]", _shown(weight), "a finite number", remedy)
    elif not isfinite(_float(weight)):
        yield Problem(
            "option",
            f"weights[{name!r}]",
            f"{_float(weight)}",
            "a finite number",
            "0 leaves it out, 1 is the adapter itself.",
        )


def _float(weight: Real) -> float:
    """The number, Inf where it is too large for one."""
    try:
        return float(weight)
    except OverflowError:
        return inf


def _shown(thing: object) -> str:
    return "nothing (None)" if thing is None else f"{repr(thing)[:60]} of type {type(thing).__name__}"
