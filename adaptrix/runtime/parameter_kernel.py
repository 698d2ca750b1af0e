"""A change to a parameter that a module reads itself: stacked experts, a router's weight, a bare parameter.

A hook sees what a module answers, and an expert's product is hidden between others there. So the module is run with
another tensor in the place of its parameter: W + ΔW, ΔW = left · right as the parameter is stored. The sum is not made
where only products with it are asked for, as the loop over experts does:

    x·(W + ΔW) = x·W + (x·left)·right
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from adaptrix.errors import Problem, UsageError


@dataclass(frozen=True, slots=True, eq=False)
class ParameterKernel:
    """``left`` ``[…, rows, r]`` with the scale folded in and ``right`` ``[…, r, columns]`` of a parameter as it is
    stored, ``[rows, columns]`` or ``[experts, rows, columns]``."""

    left: Tensor
    right: Tensor
    embedding: ClassVar[bool] = False
    described: ClassVar[str] = "a change to a parameter that its module reads itself, such as stacked experts"
    reads_output: ClassVar[bool] = False

    def delta(self, x: Tensor, y: Tensor) -> Tensor:
        """The change to the parameter ``y``, as it is stored; no input has a part in it."""
        return (self.left @ self.right).to(y.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The parameter ``y`` with the change added, as a tensor of its own."""
        return y + self.delta(x, y)

    def of(self, expert: Any) -> ParameterKernel:
        """The change of one expert."""
        return ParameterKernel(self.left[expert], self.right[expert])

    @property
    def family(self) -> Hashable:
        """One for all: their ranks lie side by side."""
        return ParameterKernel

    def numbers(self) -> Iterator[Tensor]:
        """Both factors."""
        yield from (self.left, self.right)

    def agrees(self, loaded: object) -> bool:
        """True for itself: it is never trained."""
        return loaded is self

    @classmethod
    def combined(cls, terms: Sequence[tuple[float, ParameterKernel]]) -> ParameterKernel:
        """One kernel for a weighted sum, exact: ranks side by side, weights folded into ``left``."""
        left = torch.cat([weight * kernel.left for weight, kernel in terms], dim=-1)
        return cls(left, torch.cat([kernel.right for _, kernel in terms], dim=-2))

    @classmethod
    def by_row(cls, kernels: Sequence[ParameterKernel | None]) -> NoReturn:
        """Refuses: the rows of a batch are mixed where such a module reads its parameter."""
        found = f"{cls.described}: tokens of all rows are gathered there, and which row each is of is not known"
        remedy = "Run each adapter's rows by themselves under session.use, or attach with layers=… that leave it out."
        raise UsageError(
            Problem("route", f"{len(kernels)} rows", found, "changes to modules that are given rows", remedy)
        )


class ChangedParameter:
    """W + ΔW in the place of the parameter W: products with it add a product with the factors, all else the sum.

    ``own``: W ``[rows, columns]`` or ``[experts, rows, columns]``. Indexed by one expert, it is the same of that one.
    """

    def __init__(self, own: Tensor, kernel: ParameterKernel) -> None:
        self.own, self._kernel = own, kernel

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """``left`` and ``right`` in the dtype that W has now: the model may have been cast."""
        return self._kernel.left.to(self.own.dtype), self._kernel.right.to(self.own.dtype)

    def summed(self) -> Tensor:
        """W + ΔW, made anew at each call."""
        return self._kernel.add(self.own, self.own)

    def __getitem__(self, index: Any) -> Any:
        if self.own.dim() == 3 and _is_one(index):
            return ChangedParameter(self.own[index], self._kernel.of(index))
        return self.summed()[index]

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "device", "ndim", "dim", "size", "requires_grad", "is_cuda", "layout"):
            return getattr(self.own, name)
        return getattr(self.summed(), name)

    def __len__(self) -> int:
        return len(self.own)

    def __matmul__(self, other: Any) -> Any:
        return self.summed() @ other

    def __add__(self, other: Any) -> Any:
        return self.summed() + other

    def __mul__(self, other: Any) -> Any:
        return self.summed() * other

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if _is_product(args, cls) and function in _BY_FACTORS:
            return _BY_FACTORS[function](*args, **(kwargs or {}))
        args, kwargs = tree_map_only(cls, cls.summed, (args, dict(kwargs or {})))
        return function(*args, **kwargs)


def _is_one(index: Any) -> bool:
    """True for an index that takes one expert out of a stack."""
    return isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0 and index.dtype is not torch.bool)


def _is_product(args: Sequence[Any], changed: type[ChangedParameter]) -> bool:
    """True for a tensor and a changed parameter of two axes, in this order."""
    second = args[1] if len(args) > 1 else None
    return isinstance(second, changed) and second.own.dim() == 2 and isinstance(args[0], Tensor)


def _linear(x: Tensor, weight: ChangedParameter, bias: Tensor | None = None) -> Tensor:
    left, right = weight.factors
    return functional.linear(x, weight.own, bias) + functional.linear(functional.linear(x, right), left)


def _product(x: Tensor, weight: ChangedParameter) -> Tensor:
    left, right = weight.factors
    return x @ weight.own + (x @ left) @ right


#: the products whose second factor is W, by the function that torch calls for them
_BY_FACTORS: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _product),
}
