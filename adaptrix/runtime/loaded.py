"""The adapters of a session by their names, and what is chosen of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.choices import require_name, rows_of_names, weights_of
from adaptrix.runtime.refcounts import Users
from adaptrix.runtime.selection import BASE, Loaded, Selection
from adaptrix.runtime.selector import Selector
from adaptrix.runtime.slots import Slots

#: an adapter, weights of several, or None for the base
Choice = str | Mapping[str, float] | None
#: one adapter, or None for the base, for each row of a batch
Rows = Sequence[str | None]


class Roster:
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

    def put(self, loaded: Loaded) -> None:
        """Gives an adapter its name; what had it before lives on for those who use it, and for nobody else."""
        with self._users.changed:
            before = self._loaded.get(loaded.name)
            self._loaded = {**self._loaded, loaded.name: loaded}
            if before is not None:
                self._selector.forget(before)

    def drop(self, loaded: Loaded) -> None:
        """Takes an adapter's name away."""
        self._loaded = {name: kept for name, kept in self._loaded.items() if name != loaded.name}

    def forget(self, loaded: Loaded) -> None:
        """Keeps nothing that was made of an adapter; nobody uses it any more."""
        with self._users.changed:
            self._selector.forget(loaded)

    def clear(self) -> None:
        """Forgets all of them."""
        self._loaded, self._selector = {}, Selector()

    def chosen(self, choice: Choice | Rows) -> Selection:
        """What a choice, for a batch or for each of its rows, stands for. Raises :class:`UsageError`."""
        by_row = isinstance(choice, Sequence) and not isinstance(choice, str)
        return self.routed(choice) if by_row else self.summed(choice)

    def summed(self, choice: object) -> Selection:
        """What a choice for a whole batch stands for. Raises :class:`UsageError`."""
        if choice is None:
            return BASE
        weights = weights_of(choice)
        terms = zip(weights.values(), self._named(weights), strict=True)
        return self._selector.weighted(sorted(terms, key=lambda term: term[1].version))

    def routed(self, rows: object) -> Selection:
        """What rows stand for. Raises :class:`UsageError`."""
        by_row = rows_of_names(rows)
        names = list(dict.fromkeys(name for name in by_row if name is not None))
        known = dict(zip(names, self._named(names), strict=True))
        return self._selector.routed([None if name is None else known[name] for name in by_row])

    def _named(self, names: Sequence[str] | Mapping[str, float]) -> list[Loaded]:
        unknown = [name for name in names if name not in self._loaded]
        if unknown:
            there = ", ".join(self._loaded) or "none"
            remedy = "session.load(name, uri) loads it."
            raise UsageError(
                Problem("unknown-adapter", name, "no adapter of this name is loaded", f"one of {there}", remedy)
                for name in unknown
            )
        return [self._loaded[name] for name in names]
