"""The forward pass that a thread is in: what it runs under, and what ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from adaptrix.runtime.selection import Injected, Selection

#: what acts on a module, and a count of how often it did
Table = Mapping[nn.Module, tuple[Injected, Iterator[int]]]


class Pass(threading.local):
    """One for each thread, which runs one pass of a model at a time.

    A hook after the pass does not run when Ctrl-C ends it; what it left behind is ended before the next one.
    """

    #: what the pass runs under, and what that does by module; None between passes
    selection: Selection | None = None
    table: Table | None = None
    _block: ExitStack | None = None

    def begin(self) -> ExitStack:
        """A block that :meth:`end` closes."""
        self.end()
        self._block = ExitStack()
        return self._block

    def set(self, selection: Selection | None, table: Table | None) -> None:
        """From here on the pass runs under this."""
        self.selection, self.table = selection, table

    @contextmanager
    def under(self, selection: Selection, find: Callable[[Selection], Table]) -> Iterator[None]:
        """If a pass is running, it goes on under this while the block runs."""
        block, outer = self._block, (self.selection, self.table)
        if block is not None:
            self.set(selection, find(selection))
        try:
            yield
        finally:
            if self._block is not block:  # a pass that began in here was torn off
                self.end()
            elif block is not None:
                self.set(*outer)

    def end(self) -> None:
        """Ends the pass, or what is left of one; does nothing between passes."""
        block, self._block = self._block, None
        self.set(None, None)
        if block is not None:
            block.close()
