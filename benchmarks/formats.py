"""Speed of writing each format, as whole processes, beside the injection file and llama.cpp's own converter.

    python benchmarks/formats.py [--runs 5] [--llamacpp SOURCE]

SOURCE is the unpacked source distribution of llama-cpp-python, as `make test-runtimes-big` leaves it. Prints a table in
Markdown. The adapter has the form of alpaca-lora-7b: 256 tensors, 67 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.convert import adapter, row
from benchmarks.measure import bare_python, in_turn, milliseconds, ratio

#: the config of the base: sizes of Llama 7B, as the adapter has them
BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
FORMATS = ("injection", "peft", "mlx", "gguf")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--llamacpp", type=Path, metavar="SOURCE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
        python, source = bare_python(folder), adapter(folder)
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text(json.dumps(BASE))
        commands = {to: convert(python, source, folder, to) for to in FORMATS}
        if options.llamacpp is not None:
            commands["llama.cpp"] = theirs(options.llamacpp, source, folder)
        results = in_turn(commands, options.runs, env)
        print("| what | measured | goal |\n| --- | --- | --- |")
        times = {to: f"{milliseconds(found):.0f} ms" for to, found in results.items()}
        for to in FORMATS[1:]:
            said = f"convert --to {to} ({times[to]}) against the injection file ({times['injection']})"
            row(said, f"{ratio(results[to], results['injection']):.2f} ×", "≤ 1.5 ×")
        if "llama.cpp" in results:
            said = f"llama.cpp's convert_lora_to_gguf.py ({times['llama.cpp']}) against convert --to gguf"
            row(said, f"{ratio(results['llama.cpp'], results['gguf']):.1f} ×", "≥ 5 ×")
        peaks = ", ".join(f"{to} {max(run.megabytes for run in results[to]):.0f} MB" for to in FORMATS)
        row(f"peak memory: {peaks}", "", "")


def convert(python: Path, source: Path, folder: Path, to: str) -> list[str]:
    """The command that writes an adapter in a format."""
    program, base, out = str(python.parent / "adaptrix"), str(folder / "base"), str(folder / f"out-{to}")
    return [program, "convert", str(source), "--base", base, "--to", to, "-o", out, "--force", "-q"]


def theirs(unpacked: Path, source: Path, folder: Path) -> list[str]:
    """The command of llama.cpp's converter, which needs torch and transformers: those of this environment.

    It reads safetensors or a pickle, and writes half precision unless it is told otherwise.
    """
    script = next(unpacked.glob("**/convert_lora_to_gguf.py"))
    out = str(folder / "theirs.gguf")
    options = ["--base", str(folder / "base"), "--outfile", out, "--outtype", "f32"]
    return [sys.executable, str(script), str(source), *options]


if __name__ == "__main__":
    main()
