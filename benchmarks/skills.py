"""How well the skills of prompts are told: keywords, the embedding, and both, on prompts that neither has seen.

    python benchmarks/skills.py [--write] [--misses]

Prints a table in Markdown. Classifiers are trained on one split of the labelled prompts, scaled on a second and
measured on a third; prompts of one template are in one split. Intervals of 95 % are by the bootstrap over templates.
``--write`` writes the weights that ship; ``--misses`` lists what is told wrongly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from adaptrix_text_to_lora import HashedNgrams
from adaptrix_text_to_lora.skills import KEYWORDS
from adaptrix_text_to_lora.skills.classifier import f1
from adaptrix_text_to_lora.skills.features import Kind, counted, labels, looking
from adaptrix_text_to_lora.skills.labelled import Prompt, labelled, of_split
from adaptrix_text_to_lora.skills.model import FILE, WIDTH, train, write
from torch import Tensor

KINDS: tuple[Kind, ...] = ("keyword", "neural", "both")
DRAWS = 1000
BINS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the weights that ship")
    parser.add_argument("--misses", action="store_true", help="list the prompts that are told wrongly")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        Path(str(FILE)).unlink(missing_ok=True)
        write(train(HashedNgrams(WIDTH)), Path(str(FILE)))
    prompts = of_split("test")
    wanted = labels(prompts)
    templates = len({prompt.template for prompt in prompts})
    print(f"{len(labelled())} prompts; {len(prompts)} of {templates} templates in the test\n")
    print("| | precision | recall | F1 | macro F1 | Brier | ECE | ECE unscaled |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(line("any keyword", prompts, (counted(texts(prompts)) > 0).double(), 0.5, None))
    for kind in KINDS:
        classifier = train(HashedNgrams(WIDTH), kind).classifier
        features = looking(kind, HashedNgrams(WIDTH))(texts(prompts))
        raw = torch.sigmoid(classifier.raw(features))
        print(line(f"{kind}, weighed", prompts, classifier(features), classifier.threshold, raw))
    print()
    by_skill(wanted, classifier(features) >= classifier.threshold)
    if options.misses:
        misses(prompts, classifier(features) >= classifier.threshold)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def line(name: str, prompts: Sequence[Prompt], scores: Tensor, threshold: float, raw: Tensor | None) -> str:
    """A line of the table; a rule that gives no probabilities has no Brier score and no ECE."""
    wanted, named = labels(prompts), scores >= threshold
    hits = float((named * wanted).sum())
    low, high = interval(prompts, named, wanted)
    macro = sum(f1(named[:, skill], wanted[:, skill]) for skill in range(wanted.shape[1])) / wanted.shape[1]
    cells = [hits / float(named.sum()), hits / float(wanted.sum())]
    said = [f"{cell:.3f}" for cell in cells] + [f"{f1(named, wanted):.3f} ({low:.3f}–{high:.3f})", f"{macro:.3f}"]
    if raw is None:
        return f"| {name} | {' | '.join([*said, '', '', ''])} |"
    brier = float((scores - wanted).square().mean())
    return (
        f"| {name} | {' | '.join([*said, f'{brier:.4f}', f'{ece(scores, wanted):.3f}', f'{ece(raw, wanted):.3f}'])} |"
    )


def interval(prompts: Sequence[Prompt], named: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Of F1, by drawing templates with replacement."""
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt.template, []).append(row)
    groups, generator = list(rows.values()), torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS):
        drawn = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        chosen = [row for group in drawn for row in groups[group]]
        found.append(f1(named[chosen], wanted[chosen]))
    low, high = torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def ece(scores: Tensor, wanted: Tensor) -> float:
    """The expected calibration error over all skills: ten bins of equal width, weighed by what is in them."""
    scores, wanted = scores.flatten(), wanted.flatten()
    bins = (scores * BINS).long().clamp(max=BINS - 1)
    gaps = [(scores[bins == one].sum() - wanted[bins == one].sum()).abs() for one in range(BINS)]
    return float(sum(gaps)) / len(scores)


def by_skill(wanted: Tensor, named: Tensor) -> None:
    print("| both, by skill | prompts | precision | recall |")
    print("| --- | --- | --- | --- |")
    for column, skill in enumerate(KEYWORDS):
        hits = float((named * wanted)[:, column].sum())
        told, there = float(named[:, column].sum()), float(wanted[:, column].sum())
        print(f"| {skill} | {there:.0f} | {hits / max(told, 1):.2f} | {hits / there:.2f} |")


def misses(prompts: Sequence[Prompt], named: Tensor) -> None:
    for prompt, row in zip(prompts, named, strict=True):
        told = {skill for skill, said in zip(KEYWORDS, row.tolist(), strict=True) if said}
        if told != prompt.skills:
            print(f"{prompt.text!r}: told {sorted(told)}, is {sorted(prompt.skills)}")


if __name__ == "__main__":
    main()
