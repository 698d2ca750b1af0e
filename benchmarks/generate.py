"""What generating an adapter costs beside reading the hypernetwork's weights once from memory.

    python benchmarks/generate.py [--turns 5] [--at-once 64]

Prints a table in Markdown. Hypernetworks of random numbers, of the published sizes for Mistral 7B: q and v, rank 8,
an embedding of 1,024; fp32, one thread, each in a process of its own. To read the weights is to sum over them, tensor
by tensor. What is compared runs in turn, and a ratio is the median of the ratios turn by turn; time is that of the
processor. Loading is from a file that is in the page cache, with no base at hand; peaks are resident memory above what
the process had before, the file's mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from adaptrix_text_to_lora import Hypernetwork, TextToLoRA
from adaptrix_text_to_lora.shape import Module, Shape, Variant

from benchmarks.swap import in_turn, ratio

MODULES = (Module("q_proj", 4096, 4096), Module("v_proj", 4096, 1024))
LAYERS, RANK, EMBEDDING = 32, 8, 1024
VARIANTS: tuple[Variant, ...] = ("L", "M", "S")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--of", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.of:
        print(row(*options.of, options.turns, options.at_once))
        return
    many = options.at_once
    print(f"torch {torch.__version__}, one thread, fp32\n")
    print(f"| | parameters | read once | one ÷ read | {many} at once ÷ read | each of them ÷ read | one adapter, whole "
          f"| {many} adapters, each | loading | peak loading | peak, one | peak, {many} at once |")  # fmt: skip
    print("|" + " --- |" * 12)
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            write(variant, Path(folder))
            words = ["--turns", str(options.turns), "--at-once", str(many), "--of", variant, folder]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        print(done.stdout, end="", flush=True)


def write(variant: Variant, folder: Path) -> None:
    """A checkpoint in SakanaAI's format, of random numbers."""
    torch.manual_seed(0)
    hypernetwork = Hypernetwork(Shape(variant, MODULES, LAYERS, RANK, EMBEDDING))
    for head in hypernetwork.heads.values():
        torch.nn.init.normal_(head.weight, std=0.01)
    torch.save(hypernetwork.state_dict(), folder / "hypermod.pt")
    (folder / "args.yaml").write_text(yaml.safe_dump({"training_task": "sft", "emb_model": "hashed"}))
    names = [module.name for module in MODULES]
    config = {"r": RANK, "lora_alpha": 16, "use_rslora": True, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def row(variant: str, folder: str, turns: int, at_once: int) -> str:
    """One line of the table."""
    before, began = peak(), time.process_time()
    generator = TextToLoRA(folder)
    loading, loaded = time.process_time() - began, peak()
    hypernetwork = generator.hypernetwork
    weights = list(hypernetwork.parameters())
    vectors = torch.randn(at_once, EMBEDDING)
    generator.generate("One sentence to begin with")
    with_one = peak()
    with torch.no_grad():
        read, one, many = in_turn(
            turns,
            lambda: [weight.sum() for weight in weights],
            lambda: hypernetwork(vectors[:1]),
            lambda: hypernetwork(vectors),
        )
    after_passes = peak()
    count = iter(range(1_000_000))
    read_again, whole, batch = in_turn(
        turns,
        lambda: [weight.sum() for weight in weights],
        lambda: generator.generate(f"Sentence {next(count)}"),
        lambda: [None for _ in generator.generate_many(f"Sentence {next(count)}" for _ in range(at_once))],
    )
    cells = [
        f"{sum(weight.numel() for weight in weights) / 1e6:.1f} M",
        f"{1000 * median(read):.0f} ms",
        f"{ratio(one, read):.2f}",
        f"{ratio(many, read):.1f}",
        f"{ratio(many, read) / at_once:.2f}",
        f"{ratio(whole, read_again):.2f} × read, {1000 * median(whole):.0f} ms",
        f"{ratio(batch, read_again) / at_once:.2f} × read, {1000 * median(batch) / at_once:.0f} ms",
        f"{1000 * loading:.0f} ms",
        *(f"{megabytes:.0f} MB" for megabytes in (loaded - before, with_one - before, after_passes - before)),
    ]
    return f"| {variant} | {' | '.join(cells)} |"


def peak() -> float:
    """The most memory that this process ever had resident, in megabytes; rusage counts what its parent had too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
