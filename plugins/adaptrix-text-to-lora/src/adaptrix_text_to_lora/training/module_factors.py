"""From a hypernetwork's factors to those of the modules of a live model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from adaptrix_text_to_lora.hypernetwork import Factors
from adaptrix_text_to_lora.targets import TargetModule

Pair = tuple[Tensor, Tensor]


def by_path(factors: Factors, target_modules: Sequence[TargetModule]) -> dict[str, Pair]:
    """By module path A ``[N, r, in]`` and B ``[N, out, r]``, with their graph.

    Parts of a fused weight lie side by side, their ranks one after another, as in the adapters that are written.
    """
    found = dict[str, Pair]()
    ordered = sorted(target_modules, key=lambda target: target.role.name)
    for _, group in groupby(ordered, key=lambda target: target.role.name):
        together = list(group)
        layers = [zip(*(factor.unbind(1) for factor in factors[target.name]), strict=True) for target in together]
        for layer, pairs in enumerate(zip(*layers, strict=True)):
            found[together[0].path(layer)] = _whole(pairs, together)
    return found


def _whole(pairs: Sequence[Pair], target_modules: Sequence[TargetModule]) -> Pair:
    if target_modules[0].part is None:
        return pairs[0]
    placed = [_in_rows(B, target) for (_, B), target in zip(pairs, target_modules, strict=True)]
    return torch.cat([A for A, _ in pairs], dim=1), torch.cat(placed, dim=2)


def _in_rows(B: Tensor, target: TargetModule) -> Tensor:
    """B ``[N, part, r]`` with the rows of the whole weight, zero but for its own."""
    assert target.part is not None
    rows = torch.from_numpy(target.rows[target.part]).to(B.device)
    height = sum(map(len, target.rows.values()))
    return B.new_zeros(len(B), height, B.shape[2]).index_copy(1, rows, B)
