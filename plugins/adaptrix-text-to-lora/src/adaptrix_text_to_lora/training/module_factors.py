"""From a hypernetwork's factors to those of the modules of a live model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from adaptrix_text_to_lora.hypernetwork import Factors
from adaptrix_text_to_lora.targets import TargetModule

Pair = tuple[Tensor, Tensor]


def by_path(factors: Factors, places: Sequence[TargetModule]) -> dict[str, Pair]:
    """By module path A ``[N, r, in]`` and B ``[N, out, r]``, with their graph.

    Parts of a fused weight lie side by side, their ranks one after another, as in the adapters that are written.
    """
    found = dict[str, Pair]()
    for _, group in groupby(sorted(places, key=lambda place: place.role.name), key=lambda place: place.role.name):
        together = list(group)
        layers = [zip(*(factor.unbind(1) for factor in factors[place.name]), strict=True) for place in together]
        for layer, pairs in enumerate(zip(*layers, strict=True)):
            found[together[0].path(layer)] = _whole(pairs, together)
    return found


def _whole(pairs: Sequence[Pair], places: Sequence[TargetModule]) -> Pair:
    if places[0].part is None:
        return pairs[0]
    placed = [_in_rows(B, place) for (_, B), place in zip(pairs, places, strict=True)]
    return torch.cat([A for A, _ in pairs], dim=1), torch.cat(placed, dim=2)


def _in_rows(B: Tensor, place: TargetModule) -> Tensor:
    """B ``[N, part, r]`` with the rows of the whole weight, zero but for its own."""
    assert place.part is not None
    rows = torch.from_numpy(place.rows[place.part]).to(B.device)
    height = sum(map(len, place.rows.values()))
    return B.new_zeros(len(B), height, B.shape[2]).index_copy(1, rows, B)
