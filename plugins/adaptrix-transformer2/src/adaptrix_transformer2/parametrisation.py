"""The map from an expert's trained numbers p to z, by which the singular values of a weight are multiplied.

``paper``: z = p, free, and 1 at the start: the expert begins as the base. ``reference``: as the code published with
the paper has it, m = sigmoid(p) and z = m·Σs/Σ(s⊙m), so that the weight's nuclear norm Σ(s⊙z) stays Σs; p starts
at 0.1 + 0.01·N(0, 1). The published m has a factor ``max_mult``, which cancels in z, and is left out here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["paper", "reference"]
KINDS: tuple[Kind, ...] = ("paper", "reference")


def start(kind: Kind, size: int, generator: torch.Generator) -> Tensor:
    """The p before training, ``[size]`` in fp32."""
    if kind == "paper":
        return torch.ones(size)
    return 0.1 + 0.01 * torch.randn(size, generator=generator)


def z_of(kind: Kind, p: Tensor, S: Tensor) -> Tensor:
    """The z ``[k]`` of p ``[k]``, for singular values S ``[k]`` that are not all zero."""
    return p if kind == "paper" else norm_kept(torch.sigmoid(p), S)


def norm_kept(m: Tensor, S: Tensor) -> Tensor:
    """The multiple of m ``[k]`` that leaves the nuclear norm as it was: m·Σs/Σ(s⊙m)."""
    return m * (S.sum() / (S * m).sum())
