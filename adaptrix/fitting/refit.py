"""Training of the deltas of some layers to make up for those of the others.

The loss on a batch is KL(full ‖ plan) a token, plus the relative squared distance of the hidden states that leave the
kept layers and the last norm. AdamW, with a rate in proportion to the size of each factor, warms up and decays along
a cosine; the best numbers on windows that are not trained on are kept. Batch and rate depend on seed and step alone,
so that a resumed run takes the same steps as one that was not interrupted.
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

FULL, KEPT = "full", "kept"  # the names of the whole adapter and of the plan in a session

_RATE = 0.03  # of the root mean square of a factor's numbers
_LEAST = 0.1  # of the mean of all factors': those that are zero must move, too
_WARM = 20  # steps
_HIDDEN = 1.0  # the weight of the hidden states' term beside KL
_AT_ONCE = 2048  # tokens of a batch
_EVALUATIONS = 16  # in a run
_PATIENCE = 5  # evaluations without a better one

Leaves = list[Tensor]
LISTS = ("now", "first", "second", "best")  # those of a state


@dataclass(eq=False)
class State:
    """The state of a fit at an evaluation.

    ``now``: the leaves; ``first``, ``second``: the optimiser's moments of each; ``best``: the leaves at the best
    evaluation, whose KL(full ‖ plan) on the windows to stop by is ``best_kl``; ``step``: steps taken; ``waited``:
    evaluations since the best one.
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
        """Every tensor by a unique name."""
        return {f"{name}.{at}": leaf for name in LISTS for at, leaf in enumerate(getattr(self, name))}


@dataclass(frozen=True, eq=False)
class Refit:
    """The training of a plan's deltas.

    - ``model``: a causal language model; its own weights are not trained.
    - ``session``: on the model, with the whole adapter as FULL and the plan as KEPT.
    - ``leaves``: the plan's factors, which are trained.
    - ``layers``: those of the plan.
    - ``windows``: tokens to train on ``[windows, length]``.
    - ``kl``: measures KL(full ‖ plan) on windows that are not trained on.
    - ``steps``: at most; ``seed``: of the order of the windows.
    """

    model: nn.Module
    session: Session
    leaves: Sequence[nn.Parameter]
    layers: tuple[int, ...]
    windows: Tensor
    kl: Callable[[], float]
    steps: int
    seed: int

    def run(self, state: State, evaluated: Callable[[State], None], advance: Callable[[int], object]) -> None:
        """Takes the remaining steps, then sets the leaves to the best numbers.

        ``state``: of the last evaluation, updated at each, when ``evaluated`` is called with it. ``advance``: called
        with 1 after each step. Raises :class:`RefusedError` for a loss that is not finite.
        """
        optimiser = self._optimiser(state)
        step, every = state.step, max(1, self.steps // _EVALUATIONS)
        while step < self.steps and state.waited < _PATIENCE:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _schedule(step, self.steps)
            self._step(optimiser, step)
            step += 1
            advance(1)
            if step % every == 0 or step == self.steps:
                self._evaluate(state, optimiser, step)
                evaluated(state)
        _put(self.leaves, state.best)

    def _step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        loss = self._loss(self._batch(step))
        if not loss.requires_grad:
            found = "the model calls none of the modules whose deltas are fitted when it reads text"
            remedy = "Choose layers by another policy."
            raise refuse("module-unsupported", "fit", found, "modules that it calls", remedy)
        if not isfinite(value := float(loss.detach())):
            remedy = "A base or an adapter in fp16 may overflow."
            raise refuse("diverged", "fit", f"the loss of step {step + 1} is {value}", "a finite number", remedy)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
        nn.utils.clip_grad_norm_(self.leaves, 1.0)
        optimiser.step()

    def _loss(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            target = self._answer(FULL, batch)
        found = self._answer(KEPT, batch)
        last = len(found.hidden_states) - 1
        depths = sorted({layer + 1 for layer in self.layers} | {last})
        errors = [_relative_error(found.hidden_states[depth], target.hidden_states[depth]) for depth in depths]
        return _kl(target.logits, found.logits) + _HIDDEN * torch.stack(errors).mean()

    def _answer(self, name: str, batch: Tensor) -> Any:
        with self.session.use(name):
            return self.model(input_ids=batch, use_cache=False, output_hidden_states=True)

    def _batch(self, step: int) -> Tensor:
        """The windows ``[rows, length]`` of a step; every epoch has its own order."""
        rows = min(len(self.windows), max(1, _AT_ONCE // self.windows.shape[1]))
        epoch, position = divmod(step, len(self.windows) // rows)
        order = torch.randperm(len(self.windows), generator=torch.Generator().manual_seed(self.seed + epoch))
        return self.windows[order[position * rows : (position + 1) * rows]].to(self.leaves[0].device)

    def _evaluate(self, state: State, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Measures KL, and records leaves and moments in the state."""
        kl = self.kl()
        state.step, state.waited = step, state.waited + 1
        state.now = [leaf.detach().clone() for leaf in self.leaves]
        state.first = [optimiser.state[leaf]["exp_avg"].clone() for leaf in self.leaves]
        state.second = [optimiser.state[leaf]["exp_avg_sq"].clone() for leaf in self.leaves]
        if kl < state.best_kl:
            state.best, state.best_kl, state.waited = state.now, kl, 0

    def _optimiser(self, state: State) -> torch.optim.AdamW:
        """An optimiser that resumes from a state; the leaves, still as in the plan, give the rates."""
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


def _schedule(step: int, steps: int) -> float:
    """The factor of the rate: a linear warm-up, then a cosine decay."""
    return min((step + 1) / min(_WARM, steps), 0.5 * (1 + cos(pi * step / steps)))


def _kl(target: Tensor, found: Tensor) -> Tensor:
    """KL(target ‖ found) a token, of logits ``[rows, tokens, vocabulary]``."""
    p, q = target.float().log_softmax(-1), found.float().log_softmax(-1)
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True) / p.shape[:-1].numel()


def _relative_error(found: Tensor, target: Tensor) -> Tensor:
    """‖found − target‖² / ‖target‖²."""
    found, target = found.float(), target.float()
    return (found - target).square().sum() / target.square().sum().clamp_min(1e-12)


@torch.no_grad()
def _put(leaves: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    for leaf, number in zip(leaves, numbers, strict=True):
        leaf.copy_(number)
