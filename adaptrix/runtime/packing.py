"""Several texts packed into one row, as their positions show: they begin anew in the middle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def packed(given: Mapping[str, Any]) -> bool:
    """True where the arguments of a pass say that a row holds more than one text."""
    if any(given.get(name) is not None for name in _LENGTHS):
        return True
    positions, mask = given.get("position_ids"), given.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() not in (2, 3) or positions.shape[-1] < 2:
        return False
    if positions.dim() == 3:  # one plane for time, height and width each; time goes on from token to token
        positions = positions[0]
    falls = positions[:, 1:] < positions[:, :-1]
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == len(positions):
        shown = mask[:, -positions.shape[1] :] != 0
        return bool((falls & shown[:, 1:] & shown[:, :-1]).any())
    return bool((falls & ~_padding(positions)).any())


def _padding(positions: Tensor) -> Tensor:
    """True ``[rows, tokens - 1]`` where a row had one and the same position so far, as padding on the left has."""
    same = positions[:, 1:] == positions[:, :-1]
    first = torch.ones_like(same[:, :1])
    return torch.cat([first, same[:, :-1]], dim=1).cumprod(1).bool()
