"""The steps of a training run, whatever the loss.

All that is drawn in a step (tasks, descriptions, examples, dropout) comes from torch's generator, seeded by the
run's seed and the step: a run that is taken up from a :class:`State` takes the steps that it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from adaptrix.extend import refuse


@dataclass(frozen=True, slots=True)
class Recipe:
    """``steps`` of AdamW at a ``rate`` that rises in a straight line over ``warmup``, a share of the steps, and falls
    in one to zero; gradients of a norm above ``clip`` are scaled down to it, and ``decay`` is AdamW's.

    Each step sees ``tasks`` of all, with one description each, and ``rows`` examples of each where there are examples.
    ``dropout``: whether the hypernetwork's is on. What is drawn depends on ``seed`` and the step alone.
    """

    steps: int
    rate: float
    tasks: int = 8
    rows: int = 1
    warmup: float = 0.2
    clip: float = 1.0
    decay: float = 0.01
    dropout: bool = True
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        rising = max(1.0, self.warmup * self.steps)
        falling = max(1.0, self.steps - rising)
        return self.rate * min((step + 1) / rising, (self.steps - step) / falling, 1.0)


#: the code of the problem of a run whose numbers are no longer finite
DIVERGED = "diverged"

_STATES = 20  # of a run, where `every` is not given
_APART = 1_000_003  # between the seeds of two runs, more than steps

#: the loss of the hypernetwork as it is, on what torch's generator draws
Loss = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class State:
    """A run after ``step`` steps: the hypernetwork's tensors by name, AdamW's moments by parameter, and the ``curve``
    ``[step, 3]``: loss, rate and norm of the gradient of every step."""

    step: int
    network: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]
    curve: Tensor


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks of a run: ``on_state`` gets its state after ``every`` steps (by default a twentieth of the run) and at
    its end, ``advance`` the number of steps taken."""

    every: int | None = None
    on_state: Callable[[State], object] = lambda _state: None
    advance: Callable[[int], object] = lambda _count: None


QUIET = Watch()


def run(network: nn.Module, loss: Loss, recipe: Recipe, state: State | None = None, watch: Watch = QUIET) -> Tensor:
    """Takes the steps that are left after ``state``, all of them without one; returns the curve ``[steps, 3]``.

    A state is shown once its own loss and gradient were seen to be finite. Raises :class:`RefusedError` where one is
    not, with the numbers that gave it.
    """
    with _training(network, recipe.dropout):
        optimiser, curve = _optimiser(network, recipe, state), list(state.curve if state else ())
        every, begun = watch.every or max(1, recipe.steps // _STATES), len(curve)
        for step in range(begun, recipe.steps):
            point = _differentiated(network, loss, recipe, step)
            if step % every == 0 and step > begun:
                watch.on_state(_state(network, optimiser, curve))
            _take(optimiser, recipe, step)
            curve.append(point)
            watch.advance(1)
        with torch.no_grad(), _drawing(recipe.seed, recipe.steps, network):
            _require_finite(float(loss()), "loss", recipe.steps)
        watch.on_state(_state(network, optimiser, curve))
    return _stacked(curve)


def _differentiated(network: nn.Module, loss: Loss, recipe: Recipe, step: int) -> Tensor:
    """Leaves the gradients of a step, and gives its point of the curve. Raises :class:`RefusedError`."""
    network.zero_grad()
    with _drawing(recipe.seed, step, network):
        value = loss()
        _require_finite(float(value.detach()), "loss", step)
        value.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    norm = float(nn.utils.clip_grad_norm_(network.parameters(), recipe.clip))
    _require_finite(norm, "gradient", step)
    return torch.tensor([float(value.detach()), recipe.rate_at(step), norm], dtype=torch.float64)


def _take(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate_at(step)
    optimiser.step()


def _require_finite(value: float, what: str, step: int) -> None:
    if not isfinite(value):
        remedy = "A smaller rate may help; a base in fp16 may overflow."
        raise refuse(DIVERGED, f"after step {step}", f"the {what} is {value}", "a finite number", remedy)


def _optimiser(network: nn.Module, recipe: Recipe, state: State | None) -> torch.optim.Optimizer:
    """AdamW, as it was at a state; the network becomes what it was then."""
    named = dict(network.named_parameters())
    optimiser = torch.optim.AdamW(named.values(), lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    if state is not None:
        network.load_state_dict(dict(state.network))
        for name, parameter in named.items():
            moments = {"exp_avg": state.first[name], "exp_avg_sq": state.second[name]}
            own = {key: moment.to(parameter.device, copy=True) for key, moment in moments.items()}
            optimiser.state[parameter] = {"step": torch.tensor(float(state.step)).to(parameter.device), **own}
    return optimiser


def _state(network: nn.Module, optimiser: torch.optim.Optimizer, curve: list[Tensor]) -> State:
    """Copies of all that the next step depends on."""
    named = dict(network.named_parameters())
    now = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    first, second = (
        {name: optimiser.state[parameter][key].clone() for name, parameter in named.items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    return State(len(curve), now, first, second, _stacked(curve))


def _stacked(curve: list[Tensor]) -> Tensor:
    return torch.stack(curve) if curve else torch.zeros(0, 3, dtype=torch.float64)


@contextmanager
def _training(network: nn.Module, dropout: bool) -> Iterator[None]:
    """A block in which the network's parameters take gradients; afterwards its modes are what they were."""
    mode, grads = network.training, [parameter.requires_grad for parameter in network.parameters()]
    network.train(dropout).requires_grad_(True)
    try:
        yield
    finally:
        network.train(mode).zero_grad()
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            parameter.requires_grad_(grad)


@contextmanager
def _drawing(seed: int, step: int, network: nn.Module) -> Iterator[None]:
    """A block whose random numbers are those of a seed and a step; those of everyone else go on as if it were not."""
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed * _APART + step)
        yield
