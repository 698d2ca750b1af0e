"""Threads that take the choice of the context that made them along."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from threading import Thread, get_ident
from typing import Any
from weakref import finalize, ref

from adaptrix.runtime.logs import LOG
from adaptrix.runtime.refcounts import ThreadToCome, Users
from adaptrix.runtime.selection import Selection


def thread_under(
    users: Users,
    find: Callable[[], Selection],
    block: Callable[[Selection], AbstractContextManager[None]],
    call: Callable[[], Any],
) -> Thread:
    """A thread, not started yet, that calls ``call`` in a copy of this context, in a ``block`` of what ``find`` finds.

    That is in use from now until the thread ends, or is forgotten without having been started.
    """
    owner = ThreadToCome(get_ident())
    with users.changed:
        selection = find()
        users.add(selection, owner)
    names = tuple(loaded.name for loaded in selection.adapters)

    def run() -> None:
        try:
            with block(selection):
                LOG.debug("a thread under adapters %.200r", names)
                call()
        finally:
            release()

    thread = Thread(target=copy_context().run, args=(run,))
    owner.thread = ref(thread)
    release = finalize(thread, _release, users, selection, owner)
    release.atexit = False
    return thread


def _release(users: Users, selection: Selection, owner: ThreadToCome) -> None:
    with users.changed:
        users.remove(selection, owner)
