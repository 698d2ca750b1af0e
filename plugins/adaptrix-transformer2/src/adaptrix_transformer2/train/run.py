"""The steps of a training, whatever its objective: resumable, and bit for bit the same when it is taken up again.

What a step does depends on the seed, its number and the numbers of the leaves alone. Every ``settings.every`` steps the
state is written; a training that was stopped takes the steps since then once more, as it took them before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix import RefusedError
from adaptrix.extend import Counted, refuse
from adaptrix_transformer2.train.run_state import RunState
from adaptrix_transformer2.train.settings import TrainingSettings
from adaptrix_transformer2.train.trainable import TrainableExpert

Figures = dict[str, float]

LISTS = ("now", "first", "second", "best")  # the tensors of a state
NUMBERS = ("score", "started", "step", "taken", "history")  # and what else there is of it
SKIPPED = "skipped"  # in the figures of a step that had no gradient
_AGAIN = ("diverged", "reward", "rewards-equal")  # what the same steps would be refused for again


@dataclass(eq=False)
class State:
    """State of a training: p, the optimiser's moments, the best p so far and its score, and the figures of each step.

    ``started``: the score before the first step. ``taken`` are the optimiser's own steps: fewer than ``step`` where
    some had nothing to learn from.
    """

    now: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    best: list[Tensor]
    score: float | None
    started: float | None
    step: int = 0
    taken: int = 0
    history: list[Figures] = field(default_factory=list)

    @classmethod
    def before(cls, leaves: Sequence[Tensor], score: float | None) -> State:
        """The state before the first step."""
        now = [leaf.detach().clone() for leaf in leaves]
        return cls(now, [leaf * 0 for leaf in now], [leaf * 0 for leaf in now], now, score, score)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name of its own."""
        return {_name(name, at): leaf for name in LISTS for at, leaf in enumerate(getattr(self, name))}


@dataclass(frozen=True, eq=False)
class Run:
    """``objective`` leaves the gradients of a step and gives its figures, of which ``loss`` must be finite.

    ``score`` measures the expert, and more is better; where it is None the last numbers count. ``enough`` says of
    the figures so far whether to stop.
    """

    trainable: TrainableExpert
    settings: TrainingSettings
    objective: Callable[[int], Figures]
    score: Callable[[], float] | None
    enough: Callable[[Sequence[Figures]], bool] = lambda _figures: False

    def run(self, saved: RunState | None, display: Counted) -> State:
        """Takes the steps that are left, and gives the leaves the best numbers.

        Raises :class:`RefusedError` for a loss that is not finite, and whatever the objective raises; what was
        ``saved`` by then is kept, unless the same steps would end in the same way.
        """
        state = self._initial_state(saved)
        with display("training", self.settings.steps) as advance:
            advance(state.step)
            try:
                self._steps(state, saved, advance)
            except BaseException as error:
                self._note_progress(state, saved, error)
                raise
        self.trainable.put(state.best)
        return state

    def _note_progress(self, state: State, saved: RunState | None, error: BaseException) -> None:
        """Sees to what is saved of a training that does not come to its end."""
        if saved is None:
            return
        if isinstance(error, RefusedError) and error.problems[0].code in _AGAIN:
            saved.remove()
            return
        progress = f"{state.step} of {self.settings.steps} steps"
        error.add_note(f"{saved.path} has {progress}: the same command goes on from there")

    def _initial_state(self, saved: RunState | None) -> State:
        leaves = self.trainable.leaves
        names = [_name(name, at) for name in LISTS for at in range(len(leaves))]
        found = None if saved is None else saved.read(names, NUMBERS)
        if found is None:
            return State.before(leaves, self.score() if self.score else None)
        tensors, numbers = found
        now, first, second, best = (
            [tensors[_name(name, at)].to(leaf) for at, leaf in enumerate(leaves)] for name in LISTS
        )
        return State(now, first, second, best, **numbers)

    def _steps(self, state: State, saved: RunState | None, advance: Callable[[int], object]) -> None:
        optimiser = self._optimiser(state)
        step, figures = state.step, list(state.history)
        while step < self.settings.steps and not self.enough(figures):
            figures.append(self._step(optimiser, step))
            step += 1
            advance(1)
            if step % self.settings.every == 0 or step == self.settings.steps:
                self._measure(state, optimiser, figures, saved)
        if step != state.step:
            self._measure(state, optimiser, figures, saved)

    def _step(self, optimiser: torch.optim.Optimizer, step: int) -> Figures:
        optimiser.zero_grad()
        figures = self.objective(step)
        if not isfinite(figures["loss"]):
            remedy = "A smaller rate may help; a base in fp16 may overflow."
            raise refuse(
                "diverged", "training", f"the loss of step {step + 1} is {figures['loss']}", "a number", remedy
            )
        if not figures.get(SKIPPED):
            figures["gradient"] = float(nn.utils.clip_grad_norm_(self.trainable.leaves, self.settings.clip))
            self.trainable.step(optimiser)
        return figures

    def _measure(
        self, state: State, optimiser: torch.optim.Optimizer, figures: list[Figures], saved: RunState | None
    ) -> None:
        """Measures, keeps the best, and takes down where everything is."""
        leaves, moments = self.trainable.leaves, [optimiser.state[leaf] for leaf in self.trainable.leaves]
        state.step, state.history = len(figures), list(figures)
        state.taken = int(moments[0]["step"])
        state.now = [leaf.detach().clone() for leaf in leaves]
        state.first = [moment["exp_avg"].clone() for moment in moments]
        state.second = [moment["exp_avg_sq"].clone() for moment in moments]
        score = None if self.score is None else self.score()
        if score is not None:
            state.history[-1]["score"] = score
        if score is None or state.score is None or score > state.score:
            state.best, state.score = state.now, score
        if saved is not None:
            saved.write(state.tensors(), self._numbers(state))

    def _numbers(self, state: State) -> dict[str, Any]:
        return {name: getattr(state, name) for name in NUMBERS}

    def _optimiser(self, state: State) -> torch.optim.Adam:
        """Adam as it was in a state, which the leaves take their numbers from."""
        optimiser = torch.optim.Adam(self.trainable.leaves, lr=self.settings.rate)
        self.trainable.put(state.now)
        for leaf, first, second in zip(self.trainable.leaves, state.first, state.second, strict=True):
            moments = {"exp_avg": first.clone(), "exp_avg_sq": second.clone()}
            optimiser.state[leaf] = {"step": torch.tensor(float(state.taken)), **moments}
        return optimiser


def _name(which: str, at: int) -> str:
    """The name of a tensor of a state: of which of :data:`LISTS`, and of which leaf."""
    return f"{which}.{at}"
