"""Trains the deltas of some layers to make up for those of the others.

The loss on a batch is KL(full ‖ plan) a token, plus the relative squared distance of the hidden states that leave the
kept layers and the last norm. AdamW, whose steps are in proportion to the size of each factor, warms up and comes
down along a cosine; the best numbers on windows that are not trained on are kept. Batch and rate depend on seed and
step alone, so that a run that is taken up again takes the steps that it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.errors import refuse
from adaptrix.runtime.session import Session

FULL, KEPT = "full", "kept"  # the names that a session knows both by

_RATE = 0.03  # of the root mean square of a factor's numbers
_LEAST = 0.1  # of the mean of all factors': what is zero has to move, too
_WARM = 20  # steps
_HIDDEN = 1.0  # what the hidden states weigh beside KL
_AT_ONCE = 2048  # tokens of a batch
_LOOKS = 16  # how often in a run it is measured
_PATIENCE = 5  # looks without a better one

Leaves = list[Tensor]
LISTS = ("now", "first", "second", "best")  # those of a state


@dataclass(eq=False)
class State:
    """How far a fit has come: the leaves' numbers, the optimiser's moments, and the best numbers so far.

    ``waited``: looks since the best one, whose KL(full ‖ plan) on the windows to stop by is ``best_kl``.
    """

    now: Leaves
    first: Leaves
    second: Leaves
    best: Leaves
    best_kl: float
    step: int = 0
    waited: int = 0

    @classmethod
    def before(cls, leaves: Sequence[Tensor], kl: float) -> State:
        """The state before the first step."""
        now = [leaf.detach().clone() for leaf in leaves]
        return cls(now, [leaf * 0 for leaf in now], [leaf * 0 for leaf in now], now, kl)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a name of its own."""
        return {f"{name}.{at}": leaf for name in LISTS for at, leaf in enumerate(getattr(self, name))}


@dataclass(frozen=True, eq=False)
class Refit:
    """What is trained on what: a session with the adapter under FULL and its plan, with leaves, under KEPT.

    ``layers`` are those of the plan; ``kl`` measures KL(full ‖ plan) on windows that are not trained on.
    """

    model: nn.Module
    session: Session
    leaves: Sequence[nn.Parameter]
    layers: tuple[int, ...]
    windows: Tensor
    kl: Callable[[], float]
    steps: int
    seed: int

    def run(self, state: State, looked: Callable[[State], None], advance: Callable[[int], object]) -> None:
        """Takes the steps that are left, and gives the leaves the best numbers; ``advance`` is told of steps.

        ``state`` is that of the last look, and ``looked`` is told of it at each. Raises :class:`RefusedError` for a
        loss that is not finite.
        """
        optimiser = self._optimiser(state)
        step, every = state.step, max(1, self.steps // _LOOKS)
        while step < self.steps and state.waited < _PATIENCE:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _warmth(step, self.steps)
            self._step(optimiser, step)
            step += 1
            advance(1)
            if step % every == 0 or step == self.steps:
                self._look(state, optimiser, step)
                looked(state)
        _put(self.leaves, state.best)

    def _step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        loss = self._loss(self._batch(step))
        if not isfinite(value := float(loss.detach())):
            remedy = "A base or an adapter in fp16 may overflow."
            raise refuse("diverged", "fit", f"the loss of step {step + 1} is {value}", "a finite number", remedy)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        nn.utils.clip_grad_norm_(self.leaves, 1.0)
        optimiser.step()

    def _loss(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._answer(FULL, batch)
        found = self._answer(KEPT, batch)
        last = len(found.hidden_states) - 1
        places = sorted({layer + 1 for layer in self.layers} | {last})
        apart = [_apart(found.hidden_states[place], wanted.hidden_states[place]) for place in places]
        return _kl(wanted.logits, found.logits) + _HIDDEN * torch.stack(apart).mean()

    def _answer(self, name: str, batch: Tensor) -> Any:
        with self.session.use(name):
            return self.model(input_ids=batch, use_cache=False, output_hidden_states=True)

    def _batch(self, step: int) -> Tensor:
        """The windows ``[rows, length]`` of a step; every epoch has an order of its own."""
        rows = min(len(self.windows), max(1, _AT_ONCE // self.windows.shape[1]))
        epoch, place = divmod(step, len(self.windows) // rows)
        order = torch.randperm(len(self.windows), generator=torch.Generator().manual_seed(self.seed + epoch))
        return self.windows[order[place * rows : (place + 1) * rows]].to(self.leaves[0].device)

    def _look(self, state: State, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Measures, and takes down where everything is."""
        kl = self.kl()
        state.step, state.waited = step, state.waited + 1
        state.now = [leaf.detach().clone() for leaf in self.leaves]
        state.first = [optimiser.state[leaf]["exp_avg"].clone() for leaf in self.leaves]
        state.second = [optimiser.state[leaf]["exp_avg_sq"].clone() for leaf in self.leaves]
        if kl < state.best_kl:
            state.best, state.best_kl, state.waited = state.now, kl, 0

    def _optimiser(self, state: State) -> torch.optim.AdamW:
        """One that goes on from a state; the leaves are as the plan had them, and say how large steps may be."""
        groups = [{"params": [leaf], "peak": peak} for leaf, peak in zip(self.leaves, _peaks(self.leaves), strict=True)]
        optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        _put(self.leaves, state.now)
        for leaf, first, second in zip(self.leaves, state.first, state.second, strict=True):
            moments = {"exp_avg": first.clone(), "exp_avg_sq": second.clone()}
            optimiser.state[leaf] = {"step": torch.tensor(float(state.step)), **moments}
        return optimiser


def _peaks(leaves: Sequence[Tensor]) -> list[float]:
    """The largest rate of each leaf."""
    sizes = [float(leaf.detach().square().mean().sqrt()) for leaf in leaves]
    least = _LEAST * sum(sizes) / len(sizes)
    return [_RATE * max(size, least) for size in sizes]


def _warmth(step: int, steps: int) -> float:
    """What the rate is multiplied by: up in a straight line, down along a cosine."""
    return min((step + 1) / min(_WARM, steps), 0.5 * (1 + cos(pi * step / steps)))


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted ‖ found) a token, of logits ``[rows, tokens, vocabulary]``."""
    p, q = wanted.float().log_softmax(-1), found.float().log_softmax(-1)
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True) / p.shape[:-1].numel()


def _apart(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted‖²."""
    found, wanted = found.float(), wanted.float()
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)


@torch.no_grad()
def _put(leaves: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    for leaf, number in zip(leaves, numbers, strict=True):
        leaf.copy_(number)
