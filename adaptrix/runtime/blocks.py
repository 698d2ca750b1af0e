"""The blocks of users that are open now, and a warning for a thread that one of them may have been meant for.

``with session.use("a"): Thread(target=model.generate)`` looks right, and runs under the default: a thread is a context
of its own. Nothing tells such a thread from one that means the default, so a warning is all that can be given.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from threading import Thread

from adaptrix.errors import Problem, warn_of
from adaptrix.runtime.selection import BASE, Selection
from adaptrix.wording import some


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """An open block: its thread, and those that were there already, None where the default was the base."""

    owner: int
    older: frozenset[Thread] | None


class OpenBlocks:
    """The open blocks of a session. A session warns once: what is wrong in one pass is wrong in all of its kind."""

    def __init__(self) -> None:
        self._open: dict[Block, None] = {}
        self._warned = False

    def open(self, default: Selection) -> Block:
        """Opens a block of this thread's; two calls cost less than a context manager in each block."""
        block = Block(threading.get_ident(), None if default is BASE else frozenset(threading.enumerate()))
        self._open[block] = None
        return block

    def close(self, block: Block) -> None:
        """Closes it."""
        del self._open[block]

    def unchosen(self, default: Selection) -> Selection:
        """The default, for a pass in a context that chose nothing; a warning where another thread's block is open.

        Where the default was activated, threads that are older than the block are taken to mean it: those of a server.
        """
        if self._open and not self._warned:
            owners = {block.owner for block in tuple(self._open)}
            if threading.get_ident() not in owners and any(map(_may_mean, tuple(self._open))):
                self._warned = True
                warn_of([_unchosen(default)])
        return default


def _may_mean(block: Block) -> bool:
    """True if a block may have been meant for the current thread."""
    return block.older is None or threading.current_thread() not in block.older


def _unchosen(default: Selection) -> Problem:
    names = some([loaded.name for loaded in default.adapters], 3) or "the base"
    found = f"a pass chose nothing and ran under the default ({names}), while a choice is active in another thread"
    remedy = (
        "A new thread does not take the choice along: start it by session.thread(model.generate, …), or let it call "
        "session.generate(choice, …). Where the default is meant, session.use in that thread says so. Said once."
    )
    where = threading.current_thread().name
    return Problem("thread-choice", where, found, "a choice in the thread that runs the model", remedy, "warning")
