"""The table and the plot of what the seeds found.

python benchmarks/text_to_lora/report.py [--plot docs/assets/text-to-lora.png]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

FOLDER = Path(__file__).parent / "results"
#: the two-sided 95 % quantile of Student's t, by degrees of freedom
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_OURS = "T2L, fine-tuned"


@dataclass(frozen=True, slots=True)
class Share:
    """The mean over seeds, and half the width of its 95 % interval; 0 where there is one seed."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Share:
        """By Student's t over the seeds."""
        count = len(values)
        return cls(mean(values), _T[count - 1] * stdev(values) / sqrt(count) if count > 1 else 0.0)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def shares(files: Sequence[Path]) -> dict[str, dict[str, Share]]:
    """By set and by name."""
    found = [json.loads(file.read_text()) for file in files]
    sets = [name for name in found[0] if name != "seconds"]
    return {each: {name: Share.of([seed[each][name] for seed in found]) for name in found[0][each]} for each in sets}


def way(found: dict[str, Share]) -> float:
    """How much of the way from the multi-task LoRA to the oracle the fine-tuned hypernetwork goes."""
    low, high = found["multi-task LoRA"].mean, found["oracle"].mean
    return (found[_OURS].mean - low) / (high - low)


def table(files: Sequence[Path]) -> str:
    """In Markdown; the last row is the way from the multi-task LoRA to the oracle."""
    found = shares(files)
    names = list(next(iter(found.values())))
    rows = [["right answers, %", *found], ["---"] * (1 + len(found))]
    rows += [[name, *(str(each[name]) for each in found.values())] for name in names]
    rows.append(
        ["share of the way from multi-task to oracle", *(f"{100 * way(each):.0f} %" for each in found.values())]
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(files: Sequence[Path], to: Path) -> None:
    """A panel for each set, a bar for each name, with intervals."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    found = shares(files)
    figure, axes = pyplot.subplots(1, len(found), sharey=True, figsize=(10, 4.2), layout="constrained")
    for axis, (title, each) in zip(axes, found.items(), strict=True):
        colours = ["#c1440e" if name == _OURS else "#8a94a0" for name in each]
        means, halves = [100 * share.mean for share in each.values()], [100 * share.half for share in each.values()]
        axis.barh(list(each), means, xerr=halves, color=colours, error_kw={"elinewidth": 1})
        axis.set(title=title, xlabel="right answers, %", xlim=(0, 100))
    axes[0].invert_yaxis()
    figure.savefig(to, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    files = sorted(options.results.glob("seed-*.json"))
    if not files:
        sys.exit(f"{options.results}: no seed has been run")
    print(table(files))
    if options.plot:
        plot(files, options.plot)


if __name__ == "__main__":
    main()
