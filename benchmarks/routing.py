"""Ways to serve a batch whose rows have adapters of their own, at one module: which is fastest when.

    python benchmarks/routing.py [--seconds 0.1]

Prints a table in Markdown: microseconds of processor time on one thread, the best of five rounds.
``adaptrix/runtime/rows.py`` takes the masked way for short rows and runs for long ones; a compiled graph gathers
(``adaptrix/runtime/slots.py``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 8
#: width, rank, tokens a row, distinct adapters
CASES = [(64, 8, 1, 4), (64, 8, 16, 4), (64, 8, 64, 4), (1024, 16, 1, 4), (1024, 16, 1, 8), (1024, 16, 64, 4)]


def ways(width: int, rank: int, tokens: int, count: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The module itself, one adapter for all rows, and each way of serving ``count`` adapters."""
    x, y = torch.randn(ROWS, tokens, width, dtype=dtype), torch.randn(ROWS, tokens, width, dtype=dtype)
    W = torch.randn(width, width, dtype=dtype)
    At, Bt = torch.randn(count, width, rank, dtype=dtype), torch.zeros(count, rank, width, dtype=dtype)
    ids = (torch.arange(ROWS) % count).sort().values
    wide_At, wide_Bt = At.permute(1, 0, 2).reshape(width, -1).contiguous(), Bt.reshape(-1, width)
    foreign = (torch.arange(count * rank) // rank != ids[:, None])[:, None]
    row_At, row_Bt = At[ids], Bt[ids]
    flat_x, flat_y, share = x.view(-1, width), y.view(-1, width), ROWS // count

    def masked() -> Tensor:
        inner = torch.mm(flat_x, wide_At)
        inner.view(ROWS, tokens, -1).masked_fill_(foreign, 0)
        return flat_y.addmm_(inner, wide_Bt)

    def runs() -> None:
        for number in range(count):
            rows = slice(number * share, (number + 1) * share)
            inner = torch.mm(x[rows].view(-1, width), At[number])
            y[rows].view(-1, width).addmm_(inner, Bt[number])

    return {
        "base": lambda: functional.linear(x, W),
        "one for all": lambda: flat_y.addmm_(torch.mm(flat_x, At[0]), Bt[0]),
        "masked": masked,
        "bmm of copies": lambda: y.baddbmm_(torch.bmm(x, row_At), row_Bt),
        "gather + bmm": lambda: y.baddbmm_(torch.bmm(x, At[ids]), Bt[ids]),
        "runs": runs,
    }


def microseconds(action: Callable[[], object], seconds: float) -> float:
    action()
    start = time.process_time()
    action()
    repeats = max(1, int(seconds / 5 / max(time.process_time() - start, 1e-6)))
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            action()
        best = min(best, (time.process_time() - start) / repeats)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = list(ways(8, 1, 1, 1, torch.float32))
    print(f"| dtype, width, rank, tokens, adapters | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}")
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for width, rank, tokens, count in CASES:
                found = ways(width, rank, tokens, count, dtype).values()
                figures = " | ".join(f"{microseconds(way, options.seconds):.1f}" for way in found)
                print(f"| {str(dtype)[6:]}, {width}, {rank}, {tokens}, {count} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
