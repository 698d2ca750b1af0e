"""A row of weights a skill, and what makes probabilities of its sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

_RIDGE = 0.1  # of half the squared weights, beside the summed loss
_STEPS = 300


@dataclass(frozen=True)
class Scaling:
    """Platt's scaling: logit ↦ slope · logit + shift, fitted where the logits were not."""

    slope: float
    shift: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities, of the same shape."""
        return torch.sigmoid(self.slope * logits + self.shift)


@dataclass(frozen=True)
class Classifier:
    """One-against-all logistic regression. ``weight`` ``[skills, features]``, ``bias`` ``[skills]``.

    One scaling serves all skills, for a split has few prompts of each. ``threshold``: from which probability on a
    skill is named; the one of the best F1 where the scaling was fitted.
    """

    weight: Tensor
    bias: Tensor
    scaling: Scaling
    threshold: float

    def __call__(self, features: Tensor) -> Tensor:
        """Probabilities ``[N, skills]`` for features ``[N, features]``."""
        return self.scaling(self.raw(features))

    def raw(self, features: Tensor) -> Tensor:
        """The logits before they are scaled."""
        return features @ self.weight.T + self.bias


def fitted(train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> Classifier:
    """A classifier for features ``[N, features]`` and labels ``[N, skills]``, scaled on others."""
    weight, bias = regression(*train)
    scaling = scaled(held_out[0] @ weight.T + bias, held_out[1])
    return Classifier(weight, bias, scaling, best_threshold(scaling(held_out[0] @ weight.T + bias), held_out[1]))


def regression(features: Tensor, labels: Tensor, positive: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ridge logistic regression: ``weight`` ``[skills, features]``, ``bias`` ``[skills]``; positives count so often."""
    weight = torch.zeros(labels.shape[1], features.shape[1], dtype=torch.float64)
    bias = torch.zeros(labels.shape[1], dtype=torch.float64)
    balance = torch.full_like(bias, positive)

    def loss() -> Tensor:
        logits = features @ weight.T + bias
        error = binary_cross_entropy_with_logits(logits, labels, pos_weight=balance, reduction="sum")
        return error + _RIDGE / 2 * weight.square().sum()

    minimised(loss, weight, bias)
    return weight, bias


def scaled(logits: Tensor, labels: Tensor) -> Scaling:
    """The scaling that makes the labels likeliest; its slope is positive, so that no order changes."""
    slope, shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    minimised(lambda: binary_cross_entropy_with_logits(softplus(slope) * logits + shift, labels), slope, shift)
    return Scaling(float(softplus(slope)), float(shift))


def minimised(loss: Callable[[], Tensor], *parameters: Tensor) -> None:
    """Brings the parameters to where a convex loss is least, without any chance in it."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(parameters, max_iter=_STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)


def best_threshold(probabilities: Tensor, labels: Tensor) -> float:
    """The threshold of the best F1 over all skills together, in hundredths; of equals the one nearest a half."""
    candidates = [step / 100 for step in range(5, 96)]
    return max(candidates, key=lambda limit: (f1(probabilities >= limit, labels), -abs(limit - 0.5)))


def f1(named: Tensor, labels: Tensor) -> float:
    """F1 of what is named, all skills counted together; 0 where nothing is named and nothing was to be."""
    hits, total = float((named * labels).sum()), float(named.sum() + labels.sum())
    return 2 * hits / total if total else 0.0
