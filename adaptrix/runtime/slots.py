"""Room for a fixed number of adapters: buffers whose addresses never change, and the adapter in each slot.

For every module that adapters change there is a bank, all slots' factors in two tensors, so that a compiled
graph needs to know nothing but the numbers of the slots. Slot 0 is the base's and stays zero. More adapters than slots
take turns: the least recently used one that is not in use now makes room. A slot is zeroed when it is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from threading import get_ident

import torch
from torch import Tensor

from adaptrix.architecture import Site
from adaptrix.errors import Problem, RefusedError, UsageError, refuse
from adaptrix.runtime.kernel import Kernel
from adaptrix.runtime.logs import LOG
from adaptrix.runtime.refcounts import DEFAULT, Users
from adaptrix.runtime.replaced import SiteKernel
from adaptrix.runtime.rows import rows_of
from adaptrix.runtime.selection import CHOSEN, Resident

#: ranks that banks come in; a smaller one is filled up with zeros
BUCKETS = (4, 8, 16, 32, 64, 128, 256)

Kernels = Mapping[Site, Kernel]
#: an adapter's version and weight, for each of a sum
Key = tuple[tuple[int, float], ...]
#: the sums to seat, each with a function that makes its kernels
Wanted = Mapping[Key, Callable[[], Kernels]]


def bucket(rank: int) -> int:
    """The rank of the buffers that hold this rank."""
    return next((size for size in BUCKETS if size >= rank), rank)


class Bank:
    """A module's slots: ``At`` ``[slots, in, R]``, ``Bt`` ``[slots, R, out]``; g − 1 and c ``[slots, out]``."""

    def __init__(self, model: Kernel, slots: int, rank: int) -> None:
        with torch.inference_mode(False):
            self.At = model.At.new_zeros(slots, model.At.shape[0], rank)
            self.Bt = model.Bt.new_zeros(slots, rank, model.Bt.shape[1])
            self.g1 = model.Bt.new_zeros(slots, model.Bt.shape[1])
            self.c = torch.zeros_like(self.g1)
        self.embedding = model.embedding

    def put(self, slot: int, kernel: Kernel) -> Kernel:
        """Copies a kernel into a slot, which is zero; the same kernel as it lies there."""
        At, Bt = self.At[slot, :, : kernel.rank], self.Bt[slot, : kernel.rank]
        At.copy_(kernel.At)
        Bt.copy_(kernel.Bt)
        g = None if kernel.g is None else self.g1[slot].copy_(kernel.g - 1) + 1
        c = None if kernel.c is None else self.c[slot].copy_(kernel.c)
        return Kernel(At, Bt, g, c, self.embedding)

    def clear(self, slot: int) -> None:
        for buffer in (self.At, self.Bt, self.g1, self.c):
            buffer[slot].zero_()

    def add(self, x: Tensor, y: Tensor, slots: Tensor) -> Tensor:
        """``y`` with the deltas of the ``slots`` ``[rows]`` of a batch's rows; what a compiled graph does."""
        rows = rows_of(x, slots.shape[0])
        wide = y.reshape(rows, -1, y.shape[-1])
        if self.embedding:
            inner = self.At[slots.unsqueeze(-1), x.reshape(rows, -1)]
        else:
            inner = torch.bmm(x.reshape(rows, -1, x.shape[-1]).to(self.At.dtype), self.At[slots])
        d = torch.bmm(inner, self.Bt[slots]) + self.g1[slots].unsqueeze(1) * wide + self.c[slots].unsqueeze(1)
        return y + d.view(y.shape).to(y.dtype)

    def guard(self, y: Tensor) -> None:
        """Refuses the backward pass from ``y`` through a slot once any slot was written: its numbers are gone."""
        then = self.At._version

        def unwritten(_: Tensor) -> None:
            if self.At._version != then:
                found = "another adapter was put into a slot since the forward pass, whose numbers gradients need"
                remedy = "Call backward first, or attach without slots."
                raise refuse("slots", "backward", found, "the slots as they were", remedy)

        y.register_hook(unwritten)  # type: ignore[no-untyped-call]  # torch has no types there


class Slots:
    """``count`` slots beside the base's. The caller of :meth:`seat` and :meth:`forget` holds the lock of the users."""

    def __init__(self, count: int, max_rank: int, users: Users) -> None:
        if not all(type(number) is int and number >= 1 for number in (count, max_rank)):
            found = f"slots={count!r}, max_rank={max_rank!r}"
            raise UsageError(Problem("option", "slots", found, "at least one slot, of a rank of at least 1"))
        self.count, self._rank, self._users = count, bucket(max_rank), users
        self._seated: OrderedDict[Key, Resident] = OrderedDict()
        self._free = list(range(count, 0, -1))
        self.banks: dict[Site, Bank] = {}
        self.paged = 0

    def problems(self, name: str, changes: Mapping[Site, SiteKernel]) -> Iterator[Problem]:
        """A problem for each change of an adapter that no slot can hold."""
        for site, change in changes.items():
            where = f"{name} {site}"
            if not isinstance(change, Kernel):
                yield Problem("slots", where, change.described, "low-rank changes in slots", "Attach it without slots.")
            elif site in self.banks and change.At.dtype is not self.banks[site].At.dtype:
                found, own = f"{change.At.dtype}: the model was cast", f"{self.banks[site].At.dtype}, as the slots are"
                yield Problem("model-changed", where, found, own, "Attach again after the model was cast.")
            elif change.rank > self._rank:
                expected = f"at most {self._rank}, as the slots have it"
                yield Problem("rank", where, f"rank {change.rank}", expected, f"attach(…, max_rank={change.rank})")

    def admit(self, name: str, changes: Mapping[Site, SiteKernel]) -> Kernels:
        """An adapter's kernels in the machine's memory, where they wait for a slot; banks for them if there are none.

        Raises :class:`RefusedError` for an adapter that no slot can hold.
        """
        if problems := list(self.problems(name, changes)):
            raise RefusedError(problems)
        kernels = {site: change for site, change in changes.items() if isinstance(change, Kernel)}
        with self._users.changed:
            new = {site: kernel for site, kernel in kernels.items() if site not in self.banks}
            self.banks |= {site: Bank(kernel, self.count + 1, self._rank) for site, kernel in new.items()}
        return {site: kernel.to(torch.device("cpu")) for site, kernel in kernels.items()}

    def seat(self, wanted: Wanted) -> list[Resident]:
        """A slot for each of these; waits where all are used by other threads.

        Raises :class:`UsageError` for more than there are slots, and where this thread itself keeps them.
        """
        while not self._make_room(wanted):
            self._require_patience(wanted)
            self._users.changed.wait()
        for key, make in wanted.items():
            if key not in self._seated:
                kernels = make()
                self._require_fit(kernels)
                self._seated[key] = self._put(self._free[-1], kernels)
                LOG.debug("page versions and weights %.200r into slot %d", key, self._free[-1])
                self._free.pop()
            self._seated.move_to_end(key)
        return [self._seated[key] for key in wanted]

    def holds(self, resident: Resident) -> bool:
        """True while it lies in its slot."""
        return any(one is resident for one in self._seated.values())

    def forget(self, version: int) -> None:
        """Zeroes the slots of an adapter, and of the sums that it is in; those in use make room when they are not."""
        keys = [key for key in self._seated if any(version == one for one, _ in key)]
        for key in [key for key in keys if not self._users.of(self._seated[key])]:
            self._leave(key)

    def close(self) -> None:
        """Gives the buffers back; threads that wait for a slot are refused."""
        with self._users.changed:
            for kept in (self.banks, self._seated, self._free):
                kept.clear()
            self._users.changed.notify_all()

    def _require_fit(self, kernels: Kernels) -> None:
        """Raises :class:`UsageError` for what no slot can hold: a sum has the ranks of all its adapters."""
        if problems := list(self.problems("the sum at", kernels)):
            raise UsageError(problems)

    def _make_room(self, wanted: Wanted) -> bool:
        """Frees idle slots for what is not seated yet; False where that would not be enough, and then frees none."""
        missing = sum(key not in self._seated for key in wanted)
        idle = [key for key, one in self._seated.items() if key not in wanted and not self._users.of(one)]
        if missing > len(self._free) + len(idle):
            return False
        for key in idle[: max(0, missing - len(self._free))]:
            self._leave(key)
        return True

    def _require_patience(self, wanted: Wanted) -> None:
        """Raises :class:`UsageError` where waiting might not end, as while this thread itself keeps a slot."""
        kept = {key: owners for key, one in self._seated.items() if (owners := self._users.of(one))}
        owners = set().union(*kept.values())
        staying = {key for key, users in kept.items() if DEFAULT in users}
        if len(staying | wanted.keys()) > self.count or get_ident() in owners or owners <= {DEFAULT}:
            needed = len(kept.keys() | wanted.keys())
            raise UsageError(_no_slot(self.count, needed, self._keepers(wanted, owners)))

    def _keepers(self, wanted: Wanted, owners: set[int]) -> str:
        """The kind of user that this thread cannot wait for."""
        if len(wanted) > self.count:
            return "choice"
        if get_ident() not in owners:
            return "default"
        here = {seat for selection in CHOSEN.get().values() for seat in selection.seats}
        return "block" if here & set(self._seated.values()) else "task"

    def _put(self, slot: int, kernels: Kernels) -> Resident:
        with ExitStack() as undone, torch.inference_mode(False), torch.no_grad():
            undone.callback(self._clear, slot, kernels)
            resident = Resident(slot, {site: self.banks[site].put(slot, kernel) for site, kernel in kernels.items()})
            undone.pop_all()
        self.paged += 1
        return resident

    def _leave(self, key: Key) -> None:
        left = self._seated.pop(key)
        LOG.debug("page versions and weights %.200r out of slot %d", key, left.slot)
        self._clear(left.slot, left.kernels)
        self._free.append(left.slot)

    def _clear(self, slot: int, sites: Iterable[Site]) -> None:
        with torch.no_grad():
            for site in sites:
                self.banks[site].clear(slot)


#: who keeps the slots -> how it is said, and what helps beside more of them
_KEPT = {
    "choice": ("the choice itself", "choose fewer adapters at once"),
    "default": ("the default, which stays", "call session.activate(None) first"),
    "block": (
        "a block that this call is inside of, among others",
        "leave the outer session.use or session.route first",
    ),
    "task": (
        "other asyncio tasks of this thread, which cannot go on while it waits",
        "let no more tasks in at a time (asyncio.Semaphore), or run each block by asyncio.to_thread, which waits",
    ),
}


def _no_slot(count: int, needed: int, keepers: str) -> Problem:
    kept_by, way_out = _KEPT[keepers]
    found = f"{needed} adapters or sums at once for {count} slots, which are kept by {kept_by}"
    remedy = f"Attach with slots={needed} or more, or {way_out}."
    return Problem("slots", "slots", found, "a slot for each of those in use", remedy)


def largest_rank(adapters: Iterable[Mapping[Site, SiteKernel]]) -> int:
    """The largest rank of several adapters. Raises :class:`UsageError` where there is none to go by."""
    kinds = [change for changes in adapters for change in changes.values()]
    ranks = [change.rank if isinstance(change, Kernel) else 1 for change in kinds]  # others are refused by name
    if not ranks:
        remedy = "attach(…, slots=8, max_rank=64)"
        raise UsageError(Problem("option", "max_rank", "no adapter to take it from", "the largest rank", remedy))
    return max(ranks)
