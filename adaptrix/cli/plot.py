"""Drawings through matplotlib: ‖ΔW‖ by layer and role, and KL against layers kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptrix import atomic
from adaptrix.cli.common import clean
from adaptrix.errors import Problem, UsageError
from adaptrix.inspection import Inspection
from adaptrix.measuring.report import BASE, FidelityReport, Row
from adaptrix.optional import require

_ENDINGS = (".svg", ".png", ".pdf")


def require_drawable(path: Path, *, force: bool) -> None:
    """Raises :class:`UsageError` without matplotlib, for another ending, or where there is a file already."""
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(Problem("option", str(path), f"the ending {path.suffix!r}", " or ".join(_ENDINGS)))
    require("matplotlib", "plot", str(path))
    atomic.require_free(path, force=force)


def draw_norms(inspection: Inspection, path: Path, *, force: bool) -> None:
    """Writes the picture to ``path``. Raises :class:`UsageError` as :func:`require_drawable` does."""
    save_figure(lambda: _norms(inspection), path, force=force)


def save_figure(make: Callable[[], Any], path: Path, *, force: bool) -> None:
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


def _norms(inspection: Inspection) -> Any:
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
    """An untrusted name as a label: no control characters, no formula."""
    return clean(name)[:80].replace("$", r"\$")


def draw_costs(report: FidelityReport, path: Path, *, force: bool) -> None:
    """Writes the picture to ``path``. Raises :class:`UsageError` as :func:`require_drawable` does."""
    save_figure(lambda: _costs(report), path, force=force)


def _costs(report: FidelityReport) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, rows in _lines(report).items():
        found = sorted(rows, key=lambda row: row.kept)
        below, above = zip(*map(_reach, found), strict=True)
        where, kl = [row.kept for row in found], [row.kl.value for row in found]
        axes.errorbar(where, kl, yerr=(below, above), marker="o", capsize=3, clip_on=False, label=plain(name))
    axes.axhline(report[BASE].kl.value, linestyle=":", color="grey", label="no adapter")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(report.depth, 1) + 0.5)
    axes.set_xlabel(f"layers kept of {report.depth}")
    axes.set_ylabel("KL(full ‖ plan) a token, nats")
    axes.set_title(f"{plain(report.source)}: what layers cost")
    axes.legend()
    return figure


def _lines(report: FidelityReport) -> dict[str, list[Row]]:
    """The rows of a plan by policy: what is before its number, or ``explicit``."""
    lines: dict[str, list[Row]] = {}
    for row in report.rows:
        name = "explicit" if row.policy[0].isdigit() else row.policy.partition(":")[0]
        if row.policy != BASE:
            lines.setdefault(name, []).append(row)
    return lines


def _reach(row: Row) -> tuple[float, float]:
    """The lengths of the interval below the value and above it; zero where there is no interval."""
    if row.kl.low is None or row.kl.high is None:
        return 0.0, 0.0
    return max(0.0, row.kl.value - row.kl.low), max(0.0, row.kl.high - row.kl.value)
