"""Activated LoRA (aLoRA, arXiv 2504.12397): a delta that acts from its invocation tokens on, and not before.

y ← y + m ⊙ d, m being 1 in the columns from the last occurrence of the invocation tokens in a row on. Keys and values
before that are the base's, so that a cache which the base has filled can be continued. Which columns these are is found
once a pass, from its token ids (:mod:`adaptrix.runtime.invocation`); here it is looked up.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from adaptrix.architecture import Site
from adaptrix.errors import RefusedError, refuse
from adaptrix.runtime.kernel import ActiveKernel, Adding


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The columns of a pass in which an activated LoRA acts: from ``starts`` on, one a row, 0 to ``size``.

    ``size``: the tokens of a row in this pass. ``kept``: the last of them that the head is given, where that is known.
    """

    starts: tuple[int, ...]
    size: int
    kept: int | None = None
    _idle: dict[torch.device, Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first column in which it acts in any row; ``size`` where it acts in none."""
        return min(self.starts)

    @property
    def everywhere(self) -> bool:
        """True where it acts on every token."""
        return not any(self.starts)

    def idle(self, device: torch.device) -> Tensor:
        """A mask ``[rows, size - first, 1]`` from the first column on, true where it does not act."""
        if device not in self._idle:
            columns = torch.arange(self.first, self.size, device=device)
            self._idle[device] = (columns < torch.tensor(self.starts, device=device)[:, None])[..., None]
        return self._idle[device]

    def last(self, count: int) -> Columns:
        """The last ``count`` columns alone."""
        return Columns(tuple(max(0, start - self.size + count) for start in self.starts), count)


class Gate(threading.local):
    """The invocation tokens of an adapter, and the columns in which it acts in the pass that this thread is running."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.columns: Columns | None = None

    def open(self, columns: Columns) -> None:
        """Lets the adapter act in these columns until :meth:`close`."""
        self.columns = columns

    def close(self) -> None:
        """Ends the pass."""
        self.columns = None

    def at(self, x: Tensor, y: Tensor, *, head: bool) -> Columns:
        """The columns at a module of input ``x`` and output ``y``. Raises :class:`RefusedError` where they are not
        those of the pass."""
        columns = self.columns
        if columns is None:
            found = "a module was run outside of a pass of the whole model, so the tokens before it are not known"
            raise _unknown(found, "a call of the model that was attached")
        if head and y.dim() == 3 and y.shape[1] == columns.kept:
            columns = columns.last(columns.kept)
        shape = [len(columns.starts), columns.size]
        if x.dim() != 3 or y.dim() != 3 or list(x.shape[:2]) != shape or list(y.shape[:2]) != shape:
            found = f"a module is given {list(x.shape)}, in a pass of {shape[0]} rows of {shape[1]} tokens"
            raise _unknown(found, "[rows, tokens, features]")
        return columns


@dataclass(frozen=True, slots=True, eq=False)
class Activated:
    """Any change behind a gate. ``head``: the module may be given the last tokens of a pass alone."""

    inner: ActiveKernel
    gate: Gate
    head: bool

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return self.inner.embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[rows, tokens, out]``, zero before the invocation."""
        columns = self.gate.at(x, y, head=self.head)
        if columns.everywhere:
            return self.inner.delta(x, y)
        return functional.pad(self._behind(columns, x, y), (0, 0, columns.first, 0))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added from the invocation on; in place where no gradient needs what was there before."""
        columns = self.gate.at(x, y, head=self.head)
        if columns.everywhere:
            return self.inner.add(x, y)
        if columns.first == columns.size:
            return y
        before, after = y[:, : columns.first], y[:, columns.first :]
        changed = (after + self._behind(columns, x, y)).to(y.dtype)
        if not y.is_contiguous() or (torch.is_grad_enabled() and changed.requires_grad):
            return torch.cat([before, changed], dim=1)
        after.copy_(changed)
        return y

    def _behind(self, columns: Columns, x: Tensor, y: Tensor) -> Tensor:
        """The delta from the first active column on. Idle rows are overwritten: what overflows there stays outside."""
        if columns.first == columns.size:
            return torch.zeros_like(y[:, columns.size :])
        d = self.inner.delta(x[:, columns.first :], y[:, columns.first :])
        return d.masked_fill(columns.idle(d.device), 0)


@dataclass(frozen=True, slots=True, eq=False)
class ActivatedKernel:
    """The kernel of an activated LoRA at one module: another kernel behind the adapter's gate."""

    kernel: Adding
    gate: Gate
    head: bool
    described: ClassVar[str] = "an activated LoRA, which acts from its invocation tokens on"
    reads_output: ClassVar[bool] = True

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return self.kernel.embedding

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[rows, tokens, out]``, zero before the invocation."""
        return self._around(self.kernel).delta(x, y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the delta added from the invocation on."""
        return self._around(self.kernel).add(x, y)

    @property
    def family(self) -> Hashable:
        """The gate and the kernel's own: kernels of one gate act in the same columns."""
        return self.gate, self.kernel.family

    def numbers(self) -> Iterator[Tensor]:
        """Those of the kernel."""
        return self.kernel.numbers()

    def agrees(self, loaded: object) -> bool:
        """True if the kernel has the numbers of the one loaded."""
        return isinstance(loaded, ActivatedKernel) and self.kernel.agrees(loaded.kernel)

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, ActivatedKernel]]) -> Activated:
        """One for a weighted sum of kernels of one gate."""
        first = terms[0][1]
        return first._around(first.kernel.combined([(weight, one.kernel) for weight, one in terms]))

    @classmethod
    def by_row(cls, kernels: Sequence[ActivatedKernel | None]) -> Activated:
        """One for a batch of which some rows have the kernels of one gate."""
        first = next(one for one in kernels if one is not None)
        return first._around(first.kernel.by_row([one and one.kernel for one in kernels]))

    def _around(self, inner: ActiveKernel) -> Activated:
        return Activated(inner, self.gate, self.head)


def behind_gate(kernels: Mapping[Site, Adding], tokens: Sequence[int]) -> Mapping[Site, Adding]:
    """The kernels of one adapter behind a gate of these invocation tokens; as they are where there are none."""
    if not tokens:
        return kernels
    gate = Gate(tuple(tokens))
    return {site: ActivatedKernel(kernel, gate, head=site.layer is None) for site, kernel in kernels.items()}


def gate_of(kernels: Mapping[Site, object]) -> Gate | None:
    """The gate of an adapter; None for one that acts on every token."""
    first = next(iter(kernels.values()), None)
    return first.gate if isinstance(first, ActivatedKernel) else None


def _unknown(found: str, expected: str) -> RefusedError:
    remedy = "session.use(None) runs the base; a LoRA without invocation tokens acts everywhere."
    return refuse("conditional", "activated LoRA", found, expected, remedy)
