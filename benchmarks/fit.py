"""What fitting a plan gains: KL(full ‖ plan) at half of the layers, for fit:K and every other policy of K layers.

    OMP_NUM_THREADS=1 python benchmarks/fit.py [--out out/fit] [--bases tiny gpt2] [--seeds 0 1 2] [--steps 150]

Prints a table in Markdown. Bases and adapters are those of benchmarks/fit_base.py, which trains what is not there
yet. The text that is fitted on and the one that is measured on are drawn apart, in the style that the adapter has
learned; the fit knows nothing of the latter. ``untrained`` is the layers that the fit chose, with their own deltas.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import adaptrix
from adaptrix.formats import safetensors_file
from benchmarks.fit_base import TINY, adapter, base
from examples.tiny.styles import SHIPPED
from examples.tiny.train import continuation

LEARNED, MEASURED = 500, 60  # texts
WINDOW = 192


def texts(seed: str, count: int) -> str:
    rng = random.Random(seed)
    return "\n".join("".join(continuation(rng, SHIPPED[0])) for _ in range(count))


def fitted(lora: Path, on: Path, count: int, steps: int, seed: int) -> tuple[Path, float]:
    """A fitted plan, and the seconds that it took; one that is there already is taken as it is."""
    out = lora.with_name(f"{lora.name}-fit-{count}-{steps}.adaptrix.safetensors")
    clock = out.with_suffix(".seconds")
    if not out.exists():
        text = lora.with_name("learned.txt")
        text.write_text(texts("learned", LEARNED))
        start = time.perf_counter()
        adaptrix.convert(lora, out, base=on, layers=f"fit:{count}", text=text, steps=steps, seed=seed)
        clock.write_text(f"{time.perf_counter() - start:.0f}")
    return out, float(clock.read_text())


def measured(plans: dict[str, tuple[Path, str | None]], on: Path, lora: Path) -> dict[str, float]:
    """KL(full ‖ plan) a token of each plan: an adapter, and the policy to attach it with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adaptrix.measuring.divergence import divergence
    from adaptrix.measuring.policies import planned
    from adaptrix.measuring.windows import windows
    from adaptrix.planning.plan import make_plan, recorded_plan
    from adaptrix.workflow import Workshop

    model = AutoModelForCausalLM.from_pretrained(on, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(on)(texts("measured", MEASURED), verbose=False)["input_ids"]
    workshop, adapters = Workshop(), {}
    for name, (path, policy) in {"full": (lora, "all"), **plans}.items():
        bound = workshop.bind(workshop.read(str(path)), str(on))
        adapters[name] = planned(make_plan(bound, policy) if policy else recorded_plan(bound, bound.adapter.recorded))
    with adaptrix.attach(model, adapters) as session:
        found = divergence(model, session, "full", list(plans), windows(tokens, WINDOW, WINDOW - 1))
    return {name: float(one.kl.sum() / one.tokens.sum()) for name, one in zip(plans, found, strict=True)}


def compared(which: str, seed: int, out: Path, steps: int) -> None:
    on = TINY if which == "tiny" else base(out)
    lora = adapter(which, on, out, seed)
    config = json.loads((on / "config.json").read_text())
    depth = config.get("num_hidden_layers") or config["n_layer"]
    count = depth // 2
    path, seconds = fitted(lora, on, count, steps, seed)
    plan = json.loads(safetensors_file.read(path)[1]["adaptrix"])["plan"]
    (kept,) = (",".join(map(str, layers)) for layers in plan["layers"].values())
    policies = {"middle": "middle", "spread": f"spread:{count}", "energy": f"energy:{count}", "untrained": kept}
    found = measured({"fit": (path, None), **{n: (lora, p) for n, p in policies.items()}}, on, lora)
    cells = [f"{found[name]:.4f}" for name in (*policies, "fit")]
    row(
        which,
        str(seed),
        f"{count} of {depth}",
        *cells,
        f"{found['middle'] / found['fit']:.1f} ×",
        kept,
        f"{seconds:.0f} s",
    )


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/fit"))
    parser.add_argument("--bases", nargs="+", choices=["tiny", "gpt2"], default=["tiny", "gpt2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("middle", "spread", "energy", "untrained", "fit")
    row("base", "seed", "layers", *names, "middle / fit", "chosen", "took")
    row(*["---"] * 11)
    for which in options.bases:
        for seed in options.seeds:
            compared(which, seed, options.out, options.steps)


if __name__ == "__main__":
    main()
