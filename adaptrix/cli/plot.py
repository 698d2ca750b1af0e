"""An inspection as a drawing: ‖ΔW‖ by layer and role, through matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adaptrix import atomic
from adaptrix.cli.common import clean
from adaptrix.errors import Problem, UsageError
from adaptrix.inspection import Inspection

_ENDINGS = (".svg", ".png", ".pdf")


def require_drawable(path: Path, *, force: bool) -> None:
    """Raises :class:`UsageError` without matplotlib, for another ending, or where there is a file already."""
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(Problem("plot", str(path), f"the ending {path.suffix!r}", " or ".join(_ENDINGS)))
    if find_spec("matplotlib") is None:
        remedy = 'pip install "adaptrix[plot]"'
        raise UsageError(Problem("missing", "matplotlib", "it is not installed", remedy=remedy))
    atomic.require_free(path, force=force)


def draw(inspection: Inspection, path: Path, *, force: bool) -> None:
    """Writes the picture to ``path``. Raises :class:`UsageError` as :func:`require_drawable` does."""
    save(lambda: _figure(inspection), path, force=force)


def save(make: Callable[[], Any], path: Path, *, force: bool) -> None:
    """Writes a figure of matplotlib's to ``path``. Raises :class:`UsageError` as :func:`require_drawable` does."""
    require_drawable(path, force=force)
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "adaptrix"  # equal input gives an equal file
    from matplotlib import pyplot

    figure = make()
    ending = path.suffix[1:].lower()
    try:
        with atomic.output(path, force=force) as work:
            figure.savefig(work, format=ending, metadata={"Date": None} if ending == "svg" else None)
    finally:
        pyplot.close(figure)


def _figure(inspection: Inspection) -> Any:
    from matplotlib import pyplot

    picture, layers, left_out = inspection.drawn()
    grid = [[row.get(layer, float("nan")) for layer in layers] for row in picture.values()]
    size = max(4.0, 0.22 * len(layers) + 2), 0.4 * len(grid) + 1.6
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(grid or [[float("nan")]], aspect="auto", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(grid)), list(map(plain, picture)))
    if layers != tuple(range(len(layers))):  # gaps are left out: each column says whose it is
        axes.set_xticks(range(0, len(layers), 8), list(map(str, layers[::8])))
    axes.set_xlabel("layer" + (f" (not drawn: {left_out})" if left_out else ""))
    axes.set_title(f"{plain(inspection.bound.adapter.name)}: ‖ΔW‖ by layer and role")
    figure.colorbar(image, ax=axes, label="‖ΔW‖")
    return figure


def plain(name: str) -> str:
    """A stranger's name as a label: no control characters, no formula."""
    return clean(name)[:80].replace("$", r"\$")
