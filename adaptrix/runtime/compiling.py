"""A compiled forward pass for a session with slots: one graph for every selection.

The graph reads the numbers of the slots from a tensor. They are written before each pass, under a lock that the pass
holds to its end: threads and tasks may choose different adapters, and wait for one another here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from adaptrix.runtime.selection import Selection

Function = TypeVar("Function", bound=Callable[..., Any])


def outside_graphs(function: Function) -> Function:
    """A function that no compiler looks into."""
    return cast(Function, torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch has no types there


@outside_graphs
def apart(function: Callable[..., Any], *given: Any) -> Any:
    """Calls a function outside a graph that the user compiles: the active selection must not become part of it."""
    return function(*given)


class SlotIndex:
    """The slots of a batch's rows as a tensor, one for each number of rows, written in place."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = RLock()
        self._tensors: dict[int, Tensor] = {}
        self._written: Selection | None = None
        self.slots: Tensor = self._of(1)

    @contextmanager
    def set(self, selection: Selection) -> Iterator[None]:
        """The slots of a selection for as long as the block runs."""
        with self._lock:
            if selection is not self._written:
                numbers = [0 if seat is None else seat.slot for seat in selection.seats] or [0]
                self.slots = self._of(len(numbers))
                self.slots.copy_(torch.tensor(numbers))
                self._written = selection
            yield

    def _of(self, rows: int) -> Tensor:
        if rows not in self._tensors:
            with torch.inference_mode(False):
                self._tensors[rows] = torch.zeros(rows, dtype=torch.long, device=self._device)
        return self._tensors[rows]


def compile_forward(
    model: nn.Module, lanes: SlotIndex, current: Callable[[], Selection], **options: Any
) -> Callable[[], None]:
    """Puts a compiled forward pass in the place of the model's; what is returned puts the model's back."""
    own = model.__dict__.get("forward")
    forward = model.forward
    compiled = torch.compile(forward, **options)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with lanes.set(current()):
            return compiled(*args, **kwargs)

    def undo() -> None:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.forward = own

    run.__wrapped__ = compiled  # so that the next attach sees that it is compiled
    model.forward = run
    return undo
