"""The users of adapters, by version, and of the slots that they lie in.

Unloading an adapter waits for its users, and nothing that is in use is paged out. A selection is counted
under the lock that it was looked up under, so that nothing can vanish in between.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Condition, RLock, Thread, get_ident

from adaptrix.runtime.selection import Loaded, Selection

_VERSIONS = count(1)
#: the owner of the default selection, in the place of a thread
DEFAULT = 0


@dataclass(eq=False, slots=True)
class ThreadToCome:
    """A thread as an owner from before it starts: until then its maker stands for it, who could wait for it in vain."""

    maker: int
    thread: Callable[[], Thread | None] = lambda: None

    @property
    def ident(self) -> int:
        """The thread that has to go on for this owner to leave."""
        thread = self.thread()
        return self.maker if thread is None or thread.ident is None else thread.ident


#: the number of a thread, or :data:`DEFAULT`; or a thread that may not have started
Owner = int | ThreadToCome


class Users:
    """Counts of users by what they use and by thread; versions are never used twice in a process."""

    def __init__(self) -> None:
        self._owners: defaultdict[Hashable, Counter[Owner]] = defaultdict(Counter)
        #: the lock of the counts and of all that depends on them; notified when something is free again
        self.changed = Condition(RLock())

    @staticmethod
    def version() -> int:
        """A version that no adapter has had yet."""
        return next(_VERSIONS)

    @contextmanager
    def using(self, find: Callable[[], Selection]) -> Iterator[Selection]:
        """A user of what ``find`` finds while the block runs."""
        owner = get_ident()
        with self.changed:
            selection = find()
            self.add(selection, owner)
        try:
            yield selection
        finally:
            with self.changed:
                self.remove(selection, owner)

    @contextmanager
    def using_each(self, finds: Iterable[Callable[[], Selection]]) -> Iterator[list[Selection]]:
        """The same for several, in order."""
        with ExitStack() as held:
            yield [held.enter_context(self.using(find)) for find in finds]

    def add(self, selection: Selection, owner: Owner) -> None:
        """Counts a user; the lock is held."""
        for item in selection.uses:
            self._owners[item][owner] += 1

    def remove(self, selection: Selection, owner: Owner) -> None:
        """Counts it no more; the lock is held."""
        for item in selection.uses:
            owners = self._owners[item]
            owners[owner] -= 1
            if owners[owner] == 0:
                del owners[owner]
            if not owners:
                del self._owners[item]
        self.changed.notify_all()

    def of(self, item: Hashable) -> set[int]:
        """The threads that use something, :data:`DEFAULT` among them; the lock is held."""
        owners = self._owners.get(item, ())
        return {owner if isinstance(owner, int) else owner.ident for owner in owners}

    def mine(self, loaded: Loaded) -> bool:
        """True if the current thread uses this version."""
        with self.changed:
            return get_ident() in self.of(loaded.version)

    def busy(self, loaded: Loaded) -> bool:
        """True if this version is in use, by a thread or as the default."""
        with self.changed:
            return loaded.version in self._owners

    def drain(self, loaded: Loaded) -> None:
        """Waits until this version is no longer in use."""
        with self.changed:
            self.changed.wait_for(lambda: loaded.version not in self._owners)
