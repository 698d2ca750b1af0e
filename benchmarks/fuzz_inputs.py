"""What damaged files of every kind lead to: a result, a refusal, or (a bug) anything else.

    nice -n 19 python benchmarks/fuzz_inputs.py [--count 2000] [--seed 0] [KIND ...]

Each kind of file is damaged ``--count`` times, blindly or in its structure, and read. Prints a line a kind with the
numbers read and refused, and the first of every kind of bug with the seed that makes it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import torch

import adaptrix
from adaptrix.architecture.registry import read_architecture
from adaptrix.base.checkpoint import open_base
from adaptrix.errors import AdaptrixError
from adaptrix.formats import safetensors_file
from tests.helpers import mutations
from tests.helpers.mutations import BLIND, Mutation

ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny"
SLOW = 20.0  # seconds of processor time for one small file: a bug too


@dataclass(frozen=True)
class Kind:
    """A file to damage (``file``), the ways to damage it, and what reads it."""

    file: Path
    ways: tuple[Mutation, ...]
    read: Callable[[], object]


def as_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with something in it replaced, removed or doubled, by way of the header of a safetensors file."""
    length = len(content)
    return mutations.header(length.to_bytes(8, "little") + content, rng)[8:]


def manifest(content: bytes, rng: random.Random) -> bytes:
    """An injection file with something in its manifest replaced, removed or doubled."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["adaptrix"] = as_json(header["__metadata__"]["adaptrix"].encode(), rng).decode()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


_WORDS = (
    *(b"[]", b"{}", b"0", b"-1", b"1e400", b"9" * 50, b"true", b"null", b'""', b"''", b"!!int ''", b"!!bool maybe"),
    *(b"!!timestamp x", b"!!binary x", b"&a [*a]", b"<<: {a: 1}", b"[[x]]", b"\x00", b"\xff", b"nan", b"inf", b"'{n}'"),
)


def words(content: bytes, rng: random.Random) -> bytes:
    """TOML or YAML with a word replaced, or a line doubled, moved or removed."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case _:
            parts = lines[at].split(b" ")
            parts[rng.randrange(len(parts))] = rng.choice(_WORDS)
            lines[at] = b" ".join(parts) + b"\n"
    return b"".join(lines)


TORCH = (mutations.opcodes, mutations.pickle_bytes, mutations.numbers, mutations.directory, *BLIND)


def kinds(folder: Path) -> Iterator[tuple[str, Callable[[], Kind]]]:
    """Every kind by its name, to be made in a folder."""
    yield "peft-config", lambda: _adapter(folder / "config", "adapter_config.json", (as_json, as_json, *BLIND))
    header = (mutations.header, mutations.header, mutations.header_text, *BLIND)
    yield "safetensors", lambda: _adapter(folder / "header", "adapter_model.safetensors", header)
    yield "manifest", lambda: _injection(folder / "x.adaptrix.safetensors")
    yield "index", lambda: _index(folder / "base")
    yield "registry", lambda: _registry(folder / "llama.toml")
    for name, ways in (("hypermod.pt", TORCH), ("args.yaml", (words, *BLIND)), ("adapter_config.json", (as_json,))):
        yield f"hypermod {name}", lambda name=name, ways=ways: _hypermod(folder / f"h-{name}", name, ways)
    yield "policy_params", lambda: _policy(folder / "policy_params.pt")


def _adapter(folder: Path, name: str, ways: tuple[Mutation, ...]) -> Kind:
    shutil.copytree(TINY / "adapters" / "pirate", folder)
    out = folder.with_suffix(".out")
    return Kind(folder / name, ways, lambda: adaptrix.convert(folder, out, base=TINY / "base", to="peft", force=True))


def _injection(file: Path) -> Kind:
    adaptrix.convert(TINY / "adapters" / "pirate", file, base=TINY / "base")
    return Kind(file, (manifest,), lambda: adaptrix.convert(file, file.with_suffix(".out"), to="peft", force=True))


def _index(folder: Path) -> Kind:
    shutil.copytree(TINY / "base", folder)
    tensors, metadata = safetensors_file.read(folder / "model.safetensors")
    halves = {"model-1-of-2.safetensors": list(tensors)[::2], "model-2-of-2.safetensors": list(tensors)[1::2]}
    for name, keys in halves.items():
        safetensors_file.write(folder / name, {key: tensors[key] for key in keys}, metadata)
    (folder / "model.safetensors").unlink()
    file = folder / "model.safetensors.index.json"
    file.write_text(
        json.dumps({"metadata": {}, "weight_map": {k: name for name, keys in halves.items() for k in keys}})
    )
    return Kind(file, (as_json, as_json, *BLIND), lambda: open_base(folder, "base", {}))


def _registry(file: Path) -> Kind:
    shutil.copy(ROOT / "registry" / "llama.toml", file)
    return Kind(file, (words, words, *BLIND), lambda: read_architecture(file))


def _hypermod(folder: Path, name: str, ways: tuple[Mutation, ...]) -> Kind:
    from adaptrix_text_to_lora.checkpoint import read_checkpoint

    folder.mkdir()
    for source in (TINY / "base" / "text-to-lora").iterdir():
        if source.is_file():
            shutil.copy(source, folder)
    return Kind(folder / name, ways, lambda: read_checkpoint(str(folder)))


def _policy(file: Path) -> Kind:
    from adaptrix_transformer2 import decomposed, read_published

    from tests.helpers.families import tiny_model

    model = tiny_model("llama")
    decomposition = decomposed(model)
    own = [weight for key, weight in model.state_dict().items() if "mlp" in key]
    torch.save({f"learnable_params.{n}": torch.randn(min(weight.shape)) for n, weight in enumerate(own)}, file)
    return Kind(file, TORCH, lambda: read_published(file, decomposition))


def fuzzed(kind: Kind, count: int, seed: int) -> tuple[Counter[str], dict[str, str]]:
    """The ends of reading a file damaged ``count`` times, and the first message of every bug."""
    sound, ends, bugs = kind.file.read_bytes(), Counter[str](), dict[str, str]()
    kind.read()
    for number in range(seed, seed + count):
        rng = random.Random(number)
        try:
            kind.file.write_bytes(rng.choice(kind.ways)(sound, rng))
        except (ValueError, KeyError, IndexError):  # nothing of this way is in the file
            continue
        end = _ended(kind.read)
        ends[end.partition(":")[0]] += 1
        if end not in ("read", "refused"):
            bugs.setdefault(end.partition(":")[0], f"seed {number}, {end}")
    kind.file.write_bytes(sound)
    return ends, bugs


def _ended(read: Callable[[], Any]) -> str:
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read()
        end = "read"
    except AdaptrixError as error:
        internal = any(problem.code == "internal" for problem in error.problems)
        end = f"internal: {error}" if internal else "refused"
    except Exception as error:  # the bug that is looked for
        end = f"{type(error).__name__}: {error}"
    spent = time.process_time() - began
    return end if spent < SLOW else f"slow: {spent:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for label, make in kinds(Path(name)):
            if not options.kinds or label in options.kinds:
                ends, bugs = fuzzed(make(), options.count, options.seed)
                print(f"{label}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}", flush=True)
                for said in bugs.values():
                    print(f"    {said}"[:300], flush=True)
                failed += len(bugs)
    return bool(failed)


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    sys.exit(main())
