"""The curve of a run as a table and as a drawing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptrix.extend import atomic

TABLE, DRAWING = "curve.csv", "curve.png"
_SMOOTH = 50  # points of the drawn mean


def write_curve(folder: Path, curve: Tensor) -> None:
    """Writes ``curve.csv``, and where matplotlib is installed ``curve.png``, in the place of older ones.

    ``curve`` ``[steps, 3]``: loss, rate and norm of the gradient; the numbers in the table are exact.
    """
    lines = ["step,loss,rate,norm", *(f"{step},{a!r},{b!r},{c!r}" for step, (a, b, c) in enumerate(curve.tolist(), 1))]
    with atomic.output(folder / TABLE, force=True) as work:
        work.write_text("\n".join(lines) + "\n")
    if find_spec("matplotlib") is not None:
        from adaptrix.extend import save_figure

        save_figure(lambda: _figure(curve), folder / DRAWING, force=True)


def _figure(curve: Tensor) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    loss = curve[:, 0]
    axes.plot(range(1, len(loss) + 1), loss.tolist(), linewidth=0.5, alpha=0.5, label="a step")
    width = max(1, len(loss) // _SMOOTH)
    means = [float(part.mean()) for part in torch.split(loss, width)]
    steps = [min(len(loss), (at + 1) * width) for at in range(len(means))]
    axes.plot(steps, means, marker=".", label=f"mean of {width}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    return figure
