"""An inspection as a drawing: ‖ΔW‖ by layer and role, through matplotlib."""

from __future__ import annotations

from pathlib import Path

from adaptrix import atomic
from adaptrix.errors import Problem, UsageError
from adaptrix.inspection import Inspection

_ENDINGS = (".svg", ".png", ".pdf")


def draw(inspection: Inspection, path: Path, *, force: bool) -> None:
    """Writes the picture to ``path``. Raises :class:`UsageError` without matplotlib or for another ending."""
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(Problem("plot", str(path), f"the ending {path.suffix!r}", " or ".join(_ENDINGS)))
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            Problem("missing", "matplotlib", "it is not installed", remedy='pip install "adaptrix[plot]"')
        ) from None
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "adaptrix"  # equal input gives an equal file
    from matplotlib import pyplot

    picture = inspection.picture
    depth = max(inspection.bound.depths.values(), default=1)
    grid = [[row.get(layer, float("nan")) for layer in range(depth)] for row in picture.values()]
    figure, axes = pyplot.subplots(figsize=(max(4.0, 0.22 * depth + 2), 0.4 * len(grid) + 1.6), layout="constrained")
    try:
        image = axes.imshow(grid or [[float("nan")]], aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(grid)), list(picture))
        axes.set_xlabel("layer")
        axes.set_title(f"{inspection.bound.adapter.name}: ‖ΔW‖ by layer and role")
        figure.colorbar(image, ax=axes, label="‖ΔW‖")
        with atomic.output(path, force=force) as work:
            figure.savefig(
                work, format=path.suffix[1:].lower(), metadata={"Date": None} if path.suffix == ".svg" else None
            )
    finally:
        pyplot.close(figure)
