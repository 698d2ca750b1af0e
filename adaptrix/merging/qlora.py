"""The base that QLoRA trained on: its linear weights as dequantised from NF4.

An adapter that was trained on a base in four bits has learnt to compensate for its rounding. Merged into the
full-precision weights, it compensates for errors that are not there; merged into the dequantised NF4 weights, the
model is the one that was trained. (arXiv 2305.14314: blocks of 64, their scales quantised once more.)
"""

from __future__ import annotations

import torch

from adaptrix.tensor import Tensor
from adaptrix.torch_tensor import TORCH, as_torch

_BLOCK = 64


def dequantised(stored: Tensor, *, turned: bool) -> Tensor:
    """The weight after quantisation to NF4 and back, in its own dtype. Needs bitsandbytes."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = as_torch(stored)
    weight = weight.T.contiguous() if turned else weight  # a Conv1D is transposed before it is quantised
    codes, state = quantize_4bit(weight, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    left = dequantize_4bit(codes, state).to(TORCH[stored.dtype])
    left = left.T.contiguous() if turned else left.contiguous()
    return Tensor(stored.dtype, stored.shape, left.view(-1).view(torch.uint8).numpy().tobytes())
