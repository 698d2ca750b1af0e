"""Stored tensors as torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptrix.tensor import Tensor as Stored

#: safetensors' names
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
#: the same the other way round
NAMES = {dtype: name for name, dtype in TORCH.items()}


def storable(dtype: torch.dtype) -> bool:
    """True for the floating-point dtypes that a stored tensor may have."""
    return dtype in NAMES


def as_stored(tensor: Tensor) -> Stored:
    """A tensor of floats as it would be stored, to the byte; a copy in memory."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return Stored(NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes())


def as_torch(tensor: Stored, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A stored tensor on a device, in its own dtype or another."""
    own = torch.frombuffer(bytearray(tensor.tobytes()), dtype=TORCH[tensor.dtype]).view(tensor.shape)
    return own.to(device or own.device, dtype or own.dtype)
