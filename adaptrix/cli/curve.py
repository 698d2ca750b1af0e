"""A measurement as a drawing: KL against layers kept, one line a policy, through matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptrix.cli.plot import plain, save
from adaptrix.measuring.report import BASE, FidelityReport, Row


def draw(report: FidelityReport, path: Path, *, force: bool) -> None:
    """Writes the picture to ``path``. Raises :class:`UsageError` as :func:`adaptrix.cli.plot.require_drawable` does."""
    save(lambda: _figure(report), path, force=force)


def _figure(report: FidelityReport) -> Any:
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
    """How far the interval goes below the value and above it; nowhere without one."""
    if row.kl.low is None or row.kl.high is None:
        return 0.0, 0.0
    return max(0.0, row.kl.value - row.kl.low), max(0.0, row.kl.high - row.kl.value)
