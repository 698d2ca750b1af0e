"""The steps of optimisers while a session is open: one that trains nothing of an adapter is told so.

Trainer takes for what it trains the parameters of the model that it is given. Those of a model with adapters in
training are the base's, which are frozen: it would step, clip and save nothing of an adapter, and end well.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from adaptrix.errors import Problem, UsageError, warn_of

_MODULE = "with session.training(name) as module: Trainer(model=module, …)"
_REMEDY = f"{_MODULE}, or an optimiser of session.parameters(name)."


class Steps:
    """Looks at what every optimiser of the process steps, until it is removed.

    ``acts``: True where adapters have modules of the model.
    """

    def __init__(self, model: nn.Module, acts: Callable[[], bool]) -> None:
        self._model, self._acts = model, acts
        #: True from when an adapter is trained: what is not frozen of the base then is so because the user wants it
        self.training = False
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._said: set[Problem] = set()
        self._handle = _before_steps(weakref.WeakMethod(self._look))
        weakref.finalize(self, self._handle.remove)  # a session that nobody has detached may be collected

    def remove(self) -> None:
        """Ends the looking; calling it again does nothing."""
        self._handle.remove()

    def _look(self, optimiser: Optimizer) -> None:
        """Raises :class:`UsageError` for a step that trains nothing; warns once of one that bypasses adapters."""
        stepped = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        if self.training and not any(parameter.requires_grad for parameter in stepped):
            self._refuse(stepped)
        if optimiser not in self._seen:
            self._seen.add(optimiser)
            self._warn_of_bypass(stepped)

    def _refuse(self, stepped: list[nn.Parameter]) -> None:
        """Raises unless an optimiser that trains nothing is that of another model."""
        if not stepped:
            found = "an optimiser has no parameters: those of the base are frozen while adapters are trained"
        elif any(self._of_base(stepped)):
            found = "an optimiser steps the base, which is frozen while adapters are trained"
        else:
            return
        raise UsageError(Problem("training", self._name, found, "the parameters of an adapter", _REMEDY))

    def _warn_of_bypass(self, stepped: list[nn.Parameter]) -> None:
        """Warns of a step that is right in itself, and hardly what was meant."""
        of_base = self._of_base(stepped)
        if any(of_base) and not self.training and self._acts():
            found = "an optimiser steps the base model under a session, and no adapter is in training"
            remedy = f"To train an adapter: {_REMEDY} To train the base, detach first."
        elif self.training and not all(of_base) and _has_trainer(self._model):
            found, remedy = (
                "Trainer was given the base model: it clips, saves and resumes nothing of an adapter",
                _MODULE,
            )
        else:
            return
        problem = Problem("training", self._name, found, "the module of an adapter", remedy, severity="warning")
        if problem not in self._said:
            self._said.add(problem)
            warn_of([problem])

    def _of_base(self, stepped: list[nn.Parameter]) -> list[bool]:
        base = {id(parameter) for parameter in self._model.parameters()}
        return [id(parameter) in base for parameter in stepped]

    @property
    def _name(self) -> str:
        return type(self._model).__name__


def _has_trainer(model: nn.Module) -> bool:
    """True inside a call of a Trainer that was given this model."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if any(kind.__module__ == "transformers.trainer" for kind in type(caller).__mro__):
            return getattr(caller, "model", None) is model
        frame = frame.f_back
    return False


def _before_steps(look: weakref.WeakMethod[Callable[[Optimizer], None]]) -> RemovableHandle:
    """Calls ``look`` before every step, without keeping alive whom it is of."""

    def hook(optimiser: Optimizer, *_: Any) -> None:
        if (found := look()) is not None:
            found(optimiser)

    return register_optimizer_step_pre_hook(hook)
