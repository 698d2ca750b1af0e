"""The steps of optimisers while a session is open: one that trains nothing of an adapter is told so.

Trainer takes for what it trains the parameters of the model that it is given. Those of a model with adapters in
training are the base's, which are frozen: it would step, clip and save nothing of an adapter, and end well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from adaptrix.errors import Problem, UsageError, warn_of

_REMEDY = (
    "with session.training(name) as module: Trainer(model=module, …), or an optimiser of session.parameters(name)."
)


class Steps:
    """Looks at what every optimiser of the process steps, until it is removed.

    ``acts``: True where adapters have modules of the model.
    """

    def __init__(self, model: nn.Module, acts: Callable[[], bool]) -> None:
        self._model, self._acts = model, acts
        self._frozen: dict[int, nn.Parameter] = {}
        self._prepared = False
        self._said: set[str] = set()
        self._handle = _before_steps(weakref.WeakMethod(self._look))

    def freeze(self, parameter: nn.Parameter) -> None:
        """Notes that a parameter of the base has no gradient because of the session."""
        if not self._frozen:
            self._prepared = _prepared(self._model)
        self._frozen[id(parameter)] = parameter

    def remove(self) -> None:
        """Ends the looking; calling it again does nothing."""
        self._handle.remove()
        self._frozen.clear()

    def _look(self, optimiser: Optimizer) -> None:
        """Raises :class:`UsageError` for a step in which nothing is trained; warns of one that passes adapters by."""
        stepped = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        if self._frozen:
            self._require_trained(stepped)
        problem = self._passed_by(stepped)
        if problem is not None and problem.found not in self._said:
            self._said.add(problem.found)
            warn_of([problem])

    def _require_trained(self, stepped: list[nn.Parameter]) -> None:
        frozen = any(id(parameter) in self._frozen for parameter in stepped)
        if any(parameter.requires_grad for parameter in stepped) or (stepped and not frozen):
            return
        found = "an optimiser steps the base, which is frozen while adapters are trained"
        if not stepped:
            found = "an optimiser has no parameters: those of the base are frozen while adapters are trained"
        raise UsageError(Problem("training", self._name, found, "the parameters of an adapter", _REMEDY))

    def _passed_by(self, stepped: list[nn.Parameter]) -> Problem | None:
        """A warning for a step that is right in itself, and most likely not what was meant."""
        base = {id(parameter) for parameter in self._model.parameters()}
        of_base = any(id(parameter) in base for parameter in stepped)
        if of_base and not self._frozen and self._acts():
            found = "an optimiser steps the base model under a session, and no adapter is in training"
            remedy = f"To train an adapter: {_REMEDY} To train the base, detach first."
        elif self._frozen and not of_base and not self._prepared and _prepared(self._model):
            found = "accelerate or Trainer was given the base model: its clipping and its checkpoints miss the adapter"
            remedy = "with session.training(name) as module: Trainer(model=module, …)"
        else:
            return None
        return Problem("training", self._name, found, "the module of an adapter", remedy, severity="warning")

    @property
    def _name(self) -> str:
        return type(self._model).__name__


def _prepared(model: nn.Module) -> bool:
    """True for a model that accelerate has prepared for training; it leaves this mark."""
    return bool(getattr(model, "_is_accelerate_prepared", False))


def _before_steps(look: weakref.WeakMethod[Callable[[Optimizer], None]]) -> RemovableHandle:
    """Calls ``look`` before every step; a session that nobody has detached may be collected all the same."""

    def hook(optimiser: Optimizer, *_: Any) -> None:
        if (found := look()) is not None:
            found(optimiser)

    return register_optimizer_step_pre_hook(hook)
