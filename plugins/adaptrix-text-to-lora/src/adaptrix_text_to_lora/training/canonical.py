"""One pair of factors for a ΔW.

B·A is the same for B·G and G⁻¹·A whatever the invertible G, so a hypernetwork that is to give back the factors of
many LoRAs would be asked for what nobody chose. The singular value decomposition chooses: A = √S·Vᵀ and B = U·√S,
which are balanced, in falling order, and the largest number of every column of U is positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptrix.extend import refuse

_ROUNDING = 1e-6  # of the largest singular value: what fp32 factors leave of a rank that they do not have


def canonical(A: Tensor, B: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The canonical factors of B·A: A ``[…, r, in]``, B ``[…, out, r]``, in their dtype.

    ``rank``: that of the result, by default theirs; the ranks that are more than needed are zero.
    Raises :class:`RefusedError` where B·A is of a higher rank.
    """
    wanted = A.shape[-2] if rank is None else rank
    Q, R = torch.linalg.qr(B.double())
    P, T = torch.linalg.qr(A.double().mT)
    U, S, Vt = torch.linalg.svd(R @ T.mT, full_matrices=False)
    left, right = Q @ U, (P @ Vt.mT).mT
    lost = S[..., wanted:].amax().item() if S.shape[-1] > wanted else 0.0
    if lost > _ROUNDING * S.max().item():
        found = f"a singular value of {lost:.3g} beyond rank {wanted}, the largest being {S.max().item():.3g}"
        raise refuse("rank", "LoRA", found, f"rank {wanted}", "Use `adaptrix resize --rank`, or a larger rank here.")
    signs = left.gather(-2, left.abs().argmax(-2, keepdim=True)).sign()
    root = S.clamp_min(0).sqrt()
    left, right = left * signs * root[..., None, :], signs.mT * root[..., :, None] * right
    return _fitted(right, wanted, -2).to(A.dtype), _fitted(left, wanted, -1).to(B.dtype)


def _fitted(factor: Tensor, rank: int, dim: int) -> Tensor:
    """A factor of that many ranks: cut, or filled with zeros."""
    factor = factor.narrow(dim, 0, min(rank, factor.shape[dim]))
    shape = list(factor.shape)
    shape[dim] = rank - factor.shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim)
