"""An expert in training: p as leaves of autograd, and the hooks by which it acts.

A module's answer becomes y + U(d⊙(Vᵀx)) with d = s⊙(z(p) − 1). The hooks are this package's own, and not a session's,
because gradients go to p: z and the norm that it keeps are computed in the graph. Leaving the block takes them off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.runtime.tensors import as_torch
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.parametrisation import Kind, start, z_of


class Live:
    """The expert that is trained. It acts inside ``with live.acting():``; elsewhere the model is the base."""

    def __init__(self, decomposition: Decomposition, kind: Kind, seed: int, device: torch.device) -> None:
        self.decomposition, self.kind = decomposition, kind
        generator = torch.Generator().manual_seed(seed)
        self._S = [as_torch(delta.S, device).float() for delta in decomposition.spectra.values()]
        self.leaves = [nn.Parameter(start(kind, len(S), generator).to(device)) for S in self._S]
        self._d: list[Tensor] | None = None

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Hooks the model, in evaluation mode and without gradients of its own, until the block ends."""
        with ExitStack() as undone:
            _put_to_rest(model, undone)
            for at, (path, delta) in enumerate(self.decomposition.spectra.items()):
                module = model.get_submodule(path)
                weight = module.weight
                assert isinstance(weight, Tensor)
                assert delta.U is not None
                assert delta.Vt is not None
                Ut = as_torch(delta.U, weight.device, weight.dtype).T.contiguous()
                V = as_torch(delta.Vt, weight.device, weight.dtype).T.contiguous()
                undone.callback(module.register_forward_hook(self._hook(at, V, Ut)).remove)
            yield

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The expert acts, with the numbers that p has at the beginning of the block."""
        self._d = [S * (z - 1) for S, z in zip(self._S, self.z(), strict=True)]
        try:
            yield
        finally:
            self._d = None

    def z(self) -> list[Tensor]:
        """The z of each matrix ``[k]``, in the graph of p where gradients are recorded."""
        return [z_of(self.kind, p, S) for p, S in zip(self.leaves, self._S, strict=True)]

    @torch.no_grad()
    def put(self, numbers: Sequence[Tensor]) -> None:
        """Gives p these numbers."""
        for leaf, number in zip(self.leaves, numbers, strict=True):
            leaf.copy_(number)

    def _hook(self, at: int, V: Tensor, Ut: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        """``V`` is ``[in, k]``, ``Ut`` ``[k, out]``."""

        def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._d is None:
                return None
            inner: Tensor = args[0] @ V
            return output + (inner * self._d[at].to(inner.dtype)) @ Ut

        return add


def _put_to_rest(model: nn.Module, undone: ExitStack) -> None:
    """Evaluation mode, and no gradient for the base's own parameters, until ``undone`` is closed."""
    for module in model.modules():
        if module.training:
            undone.callback(setattr, module, "training", True)
            module.training = False
    for parameter in model.parameters():
        if parameter.requires_grad:
            undone.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
