"""An expert in training: p as leaves of autograd, over the z that a session acts by.

The session has z as its own leaves, which is where a pass leaves its gradients;
:meth:`TrainableExpert.pull` takes them on to p, through the norm that z keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from adaptrix import Session, attach
from adaptrix.extend import as_torch
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.experts import untrained
from adaptrix_transformer2.parametrisation import Kind, start, z_of

_NAME = "in-training"


class TrainableExpert:
    """The expert that is trained. It acts inside ``with trainable.acting():``; elsewhere the model is the base."""

    def __init__(self, session: Session, decomposition: Decomposition, kind: Kind, seed: int) -> None:
        self.decomposition, self._kind, self._session = decomposition, kind, session
        named = session.named_parameters(_NAME)
        self._z = [named[f"{path}.spectral_z"] for path in decomposition.spectra]
        spectra = decomposition.spectra.values()
        self._S = [as_torch(delta.S, z.device, z.dtype) for delta, z in zip(spectra, self._z, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        self.leaves = [nn.Parameter(start(kind, len(S), generator).to(S)) for S in self._S]
        self._update_session()

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The expert acts, with the numbers that p has."""
        with self._session.use(_NAME):
            yield

    def z(self) -> list[Tensor]:
        """The z of each matrix ``[k]``, in the graph of p where gradients are recorded."""
        return [z_of(self._kind, p, S) for p, S in zip(self.leaves, self._S, strict=True)]

    def pull(self) -> None:
        """Takes the gradients that passes have left at z on to p."""
        found = [torch.zeros_like(z) if z.grad is None else z.grad for z in self._z]
        torch.autograd.backward(self.z(), found)
        for z in self._z:
            z.grad = None

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Takes a step of an optimiser of the leaves."""
        optimiser.step()
        self._update_session()

    @torch.no_grad()
    def put(self, numbers: Sequence[Tensor]) -> None:
        """Gives p these numbers."""
        for leaf, number in zip(self.leaves, numbers, strict=True):
            leaf.copy_(number)
        self._update_session()

    @torch.no_grad()
    def _update_session(self) -> None:
        """Gives the session's z what p makes of them."""
        for z, now in zip(self._z, self.z(), strict=True):
            z.copy_(now)


@contextmanager
def trainable_on(model: nn.Module, decomposition: Decomposition, kind: Kind, seed: int) -> Iterator[TrainableExpert]:
    """The expert in training on a model, which is in evaluation mode meanwhile, and afterwards as it was."""
    with ExitStack() as undone:
        for module in model.modules():
            if module.training:
                undone.callback(setattr, module, "training", True)
                module.training = False
        session = undone.enter_context(attach(model, {_NAME: untrained(decomposition, _NAME)}))
        yield TrainableExpert(session, decomposition, kind, seed)
