"""A module whose own tensors an adapter replaces: a trained head, an embedding saved whole, a norm.

y ← f'(x), f' being the module's own arithmetic on the adapter's tensors; the output of the module itself is
dropped. No difference W' − W is ever made, so the result is that of the replaced module to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.kernel import Adding
from adaptrix.runtime.rows import rows_of
from adaptrix.runtime.trainable import Trainable


@dataclass(frozen=True, slots=True, eq=False)
class Replaced:
    """``module``: a twin of the model's, with the adapter's tensors and no hooks; nothing else refers to it."""

    module: nn.Module
    described: ClassVar[str] = "the module is replaced whole"

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return isinstance(self.module, nn.Embedding)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference of the replaced module's output from ``y``."""
        _require_one(self.module, y)
        return self.add(x, y) - y

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The replaced module's output for ``x``, in the dtype of ``y``."""
        own = next(self.module.parameters(), y).dtype  # the model may have been cast since the adapter was loaded
        x = x.to(own) if x.is_floating_point() and own.is_floating_point else x
        answer: Tensor = type(self.module).forward(self.module, x)  # an instance's own forward is the original's
        return answer.to(y.dtype) if isinstance(y, Tensor) else answer  # routers answer with several

    def numbers(self) -> Iterator[Tensor]:
        """The module's tensors, the adapter's among them."""
        return (tensor for tensor in self.module._parameters.values() if tensor is not None)


#: what an adapter does at one module
SiteKernel = Adding | Replaced


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """The changes of a batch's rows, one a row, None for the base, where some row is in training or
    replaces the module."""

    changes: tuple[SiteKernel | Trainable | None, ...]

    @property
    def embedding(self) -> bool:
        """True where it changes what enters every layer."""
        return any(change.embedding for change in self.changes if change is not None)

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to ``y`` ``[batch, …, out]``. Beams of a row lie together, so they share its change."""
        return self.add(x, y) - y

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with each row changed. Raises :class:`UsageError` for a batch of another length."""
        for change in self.changes:
            if isinstance(change, Replaced):
                _require_one(change.module, y)
        count = rows_of(x, len(self.changes))
        pairs = zip(x.chunk(count), y.chunk(count), strict=True)
        rows = [b if c is None else c.add(a, b) if isinstance(c, Replaced) else (b + c.delta(a, b)).to(y.dtype)
                for c, (a, b) in zip(self.changes, pairs, strict=True)]  # fmt: skip
        return torch.cat(rows)


def _require_one(module: nn.Module, y: object) -> None:
    """Raises :class:`UsageError` where a module answers with several tensors, as routers of experts do."""
    if not isinstance(y, Tensor):
        found = f"a {type(module).__name__} answers with several tensors, which have no rows and no drift"
        remedy = "Use the adapter for the whole batch, in a session without max_drift and measure."
        raise UsageError(Problem("extra-unsupported", type(module).__name__, found, "one tensor", remedy))


def twin(module: nn.Module, tensors: Mapping[str, Tensor]) -> Replaced:
    """A module's replacement: the same but for some of its parameters."""
    other = copy.copy(module)
    fixed = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    other._parameters = {**module._parameters, **fixed}
    return Replaced(other)


def adding_only(
    site: Site, terms: Sequence[tuple[float, SiteKernel | Trainable]]
) -> list[tuple[float, Adding | Trainable]]:
    """The terms of a weighted sum at a module. Raises :class:`UsageError` where one replaces the module."""
    if any(isinstance(change, Replaced) for _, change in terms):
        found = "an adapter replaces this module whole, which has no weighted sum"
        remedy = "Use that adapter alone with weight 1, or give it rows of its own with session.route."
        raise UsageError(Problem("extra-unsupported", str(site), found, "adapters that only add to the module", remedy))
    return [(weight, change) for weight, change in terms if not isinstance(change, Replaced)]
