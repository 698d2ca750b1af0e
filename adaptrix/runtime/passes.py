"""The forward pass that a thread is in: what it runs under, and what ends with it."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

from adaptrix.runtime.selection import Selection


class Pass(threading.local):
    """One for each thread, which runs one pass of a model at a time.

    A hook after the pass does not run when Ctrl-C ends it; what it left behind is ended before the next one.
    """

    #: the default that the pass took at its start; None where its context chose by itself, and between passes
    selection: Selection | None = None
    _block: ExitStack | None = None

    def begin(self) -> ExitStack:
        """A block that :meth:`end` closes."""
        self.end()
        self._block = ExitStack()
        return self._block

    def take(self, selection: Selection) -> None:
        """What the pass runs under from here on."""
        self.selection = selection

    def end(self, *_: Any) -> None:
        """Ends the pass, or what is left of one; does nothing between passes."""
        block, self._block, self.selection = self._block, None, None
        if block is not None:
            block.close()
