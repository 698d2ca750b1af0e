"""The layouts of fused weights: which rows each part has.

``contiguous``: all rows of the first part, then all of the second (GPT-2, Phi-3). ``grouped``: for
each of ``groups`` groups, its share of the first part, then of the second (NeoX, Falcon, Bloom: one
group a kv head, q rows then k then v). A ``RowIndex`` numbers the rows of ΔW ``[out, in]``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adaptrix.architecture import Role
from adaptrix.architecture.dims import Dims

RowIndex = NDArray[np.int64]


def part_rows(sizes: Mapping[str, int], groups: int = 1) -> dict[str, RowIndex]:
    """The row numbers of each part, in the part's own order.

    ``sizes`` are the rows of each part, all divisible by ``groups``; 1 group is the contiguous
    layout. Together the parts hold every row of the fused weight once. Raises ``ValueError``.
    """
    uneven = {part: size for part, size in sizes.items() if size % groups}
    if uneven:
        raise ValueError(f"{uneven} rows cannot be shared among {groups} groups")
    stride = sum(sizes.values()) // groups
    starts = np.arange(groups, dtype=np.int64)[:, None] * stride
    rows, offset = {}, 0
    for part, size in sizes.items():
        share = size // groups
        rows[part] = (starts + offset + np.arange(share)).reshape(-1)
        offset += share
    return rows


def role_rows(role: Role, dims: Dims) -> dict[str, RowIndex] | None:
    """The rows of each part of a fused role; None where a size is not known."""
    sizes = {part: dims.get(expression) for part, expression in role.parts.items()}
    groups = dims.get(role.groups) if role.layout == "grouped" and role.groups else 1
    if groups is None or any(size is None for size in sizes.values()):
        return None
    return part_rows({part: size for part, size in sizes.items() if size is not None}, groups)
