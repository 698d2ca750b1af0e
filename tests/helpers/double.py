"""Double precision through and through, so that a bound on gradients hangs on no CPU's kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

#: Gradients and training in double against the same in another order of sums. Rounding is 2⁻⁵³ ≈ 1e-16 an operation;
#: three layers and a loss are some 10³ operations on the way to a number of the size of 1, so 1e-13 with every
#: rounding in one direction. A step of AdamW passes on a gradient's error times lr/eps = 1e-2/1e-4 = 100, and five
#: steps add up to 5e-11. A single cast to fp32 on the way costs 6e-8 of a number, and a missing factor everything.
EXACT = 1e-10


@contextmanager
def double() -> Iterator[None]:
    """While it is entered, code that asks torch for fp32 gets double.

    Transformers computes norms, the softmax of attention and rotary angles in fp32 whatever the dtype of the model,
    which alone would round a model in double to 6e-8, and differently on every CPU. (A mode of torch functions
    would be left in a backward pass, where layers are recomputed.)
    """
    with patch.object(torch, "float32", torch.float64), patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield
