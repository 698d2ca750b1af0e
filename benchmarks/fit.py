"""What fitting a plan gains: KL(full ‖ plan) at half of the layers, for fit:K and every other policy of K layers.

    OMP_NUM_THREADS=1 python benchmarks/fit.py [--out out/fit] [--bases tiny gpt2] [--seeds 0 1 2] [--steps 150]
    OMP_NUM_THREADS=1 python benchmarks/fit.py --bases tiny --seeds 0 --windows 64 128 256 512 --longest 128 512

Prints tables in Markdown. Bases and adapters are those of benchmarks/fit_base.py, which trains what is not there
yet. The text that is fitted on and the one that is measured on are drawn apart, in the style that the adapter has
learned; the fit knows nothing of the latter. ``untrained`` is the layers that the fit chose, with their own deltas.
Intervals hold 95 % of what other windows of the text would have given.

``--windows`` asks whether a plan costs more on windows longer than those that it was fitted on: KL by their length,
for plans that are fitted on windows of at most so many tokens as ``--longest`` says, of the same text.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import adaptrix
from adaptrix.fitting import corpus
from adaptrix.formats import safetensors_file
from adaptrix.measuring.bootstrap import Estimate, estimate
from benchmarks.fit_base import TINY, adapter, base
from examples.tiny.styles import SHIPPED
from examples.tiny.train import continuation

LEARNED, MEASURED = 500, 60  # texts
WINDOW, LONGEST = 192, corpus.LONGEST


@dataclass(frozen=True)
class Trial:
    """A plan that was fitted: of which adapter on which base, and in how many seconds."""

    on: Path
    lora: Path
    path: Path
    seconds: float

    @property
    def kept(self) -> str:
        """The layers, as a policy."""
        plan = json.loads(safetensors_file.read(self.path)[1]["adaptrix"])["plan"]
        (layers,) = plan["layers"].values()
        return ",".join(map(str, layers))


def size(on: Path, *names: str) -> int:
    """What a base's config says under the first of these names that it has."""
    config = json.loads((on / "config.json").read_text())
    return int(next(config[name] for name in names if name in config))


def depth(on: Path) -> int:
    return size(on, "num_hidden_layers", "n_layer")


def texts(seed: str, count: int) -> str:
    rng = random.Random(seed)
    return "\n".join("".join(continuation(rng, SHIPPED[0])) for _ in range(count))


def fitted(which: str, seed: int, out: Path, steps: int, longest: int = LONGEST) -> Trial:
    """A fitted plan of half the layers; one that is there already is taken as it is."""
    on = TINY if which == "tiny" else base(out)
    lora, count = adapter(which, on, out, seed), depth(on) // 2
    short = "" if longest == LONGEST else f"-{longest}"
    path = lora.with_name(f"{lora.name}-fit-{count}-{steps}{short}.adaptrix.safetensors")
    clock = path.with_suffix(".seconds")
    if not path.exists():
        corpus.LONGEST = longest
        text = lora.with_name("learned.txt")
        text.write_text(texts("learned", LEARNED))
        start = time.perf_counter()
        adaptrix.convert(lora, path, base=on, layers=f"fit:{count}", text=text, steps=steps, seed=seed)
        clock.write_text(f"{time.perf_counter() - start:.0f}")
    return Trial(on, lora, path, float(clock.read_text()))


def measured(trial: Trial, policies: dict[str, str], lengths: Sequence[int]) -> list[dict[str, Estimate]]:
    """KL(full ‖ plan) a token of each policy and of the fitted plan, ``fit``, for each length of a window."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adaptrix.measuring.divergence import divergence
    from adaptrix.measuring.policies import planned
    from adaptrix.measuring.text import windows
    from adaptrix.pipeline import Pipeline
    from adaptrix.planning.plan import make_plan
    from adaptrix.planning.recorded import recorded_plan

    model = AutoModelForCausalLM.from_pretrained(trial.on, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(trial.on)(texts("measured", MEASURED), verbose=False)["input_ids"]
    pipeline = Pipeline()
    whole, fit = (pipeline.bind(pipeline.read(str(path)), str(trial.on)) for path in (trial.lora, trial.path))
    plans = {name: make_plan(whole, policy) for name, policy in {"full": "all", **policies}.items()}
    assert fit.adapter.recorded is not None  # it is an injection file
    plans["fit"] = recorded_plan(fit, fit.adapter.recorded)
    names = [*policies, "fit"]
    with adaptrix.attach(model, {name: planned(plan) for name, plan in plans.items()}) as session:
        every = [divergence(model, session, "full", names, windows(tokens, n, n - 1)) for n in lengths]
    return [dict(zip(names, (estimate(one.kl, one.tokens, 0) for one in found), strict=True)) for found in every]


def compare_policies(options: argparse.Namespace) -> None:
    """A row for each base and seed: what every policy costs."""
    names = ("middle", "spread", "energy", "untrained", "fit")
    header("base", "seed", "layers", *names, "95 %", "middle / fit", "chosen", "took")
    for which in options.bases:
        for seed in options.seeds:
            trial = fitted(which, seed, options.out, options.steps)
            layers = depth(trial.on)
            count = layers // 2
            policies = {name: f"{name}:{count}" for name in ("spread", "energy")}
            policies |= {"middle": "middle", "untrained": trial.kept}
            (found,) = measured(trial, policies, [WINDOW])
            cells = [f"{found[name].value:.4f}" for name in names]
            gained = f"{found['middle'].value / found['fit'].value:.1f} ×"
            sizes = f"{count} of {layers}"
            row(which, str(seed), sizes, *cells, interval(found["fit"]), gained, trial.kept, f"{trial.seconds:.0f} s")


def compare_windows(options: argparse.Namespace) -> None:
    """A row for each plan that was fitted: what it costs on windows of several lengths."""
    header("base", "seed", "plan", *(f"{length} tokens" for length in options.windows))
    for which in options.bases:
        for seed in options.seeds:
            for number, longest in enumerate(options.longest):
                trial = fitted(which, seed, options.out, options.steps, longest)
                most = size(trial.on, "max_position_embeddings", "n_positions")
                lengths = [length for length in options.windows if length <= most]
                policies = {} if number else {"middle": "middle"}
                found = measured(trial, policies, lengths)
                for name in (*policies, "fit"):
                    plan = name if name != "fit" else f"fitted on windows of {min(longest, most)}"
                    row(which, str(seed), plan, *(f"{at[name].value:.4f} ({interval(at[name])})" for at in found))


def interval(found: Estimate) -> str:
    return "N/A" if found.low is None or found.high is None else f"{found.low:.4f}–{found.high:.4f}"


def header(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/fit"))
    parser.add_argument("--bases", nargs="+", choices=["tiny", "gpt2"], default=["tiny", "gpt2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--windows", type=int, nargs="+", help="compare windows of so many tokens instead of policies")
    parser.add_argument("--longest", type=int, nargs="+", default=[LONGEST], help="with --windows: to fit on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.windows:
        compare_windows(options)
    else:
        compare_policies(options)


if __name__ == "__main__":
    main()
