"""Formats as far as a source needs them, by file names and by what a file begins with; and one that holds little."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.delta import LowRank, of_class
from adaptrix.formats import safetensors_file
from adaptrix.planning.plan import Plan
from adaptrix.records import Bundle, Format


def _detect(bundle: Bundle) -> bool:
    raise AssertionError("a source does not detect")


def _detect_whole(bundle: Bundle) -> bool:
    (path,) = bundle.files.values()
    return path.read_bytes()[8:].startswith(b'{"__metadata__":{"adaptrix":')


def _read(bundle: Bundle) -> Adapter:
    raise AssertionError("a source does not read")


PEFT = Format("peft", (("adapter_config.json",), ("adapter_model.safetensors", "adapter_model.bin")), _detect, _read)
INJECTION = Format("adaptrix", (("*.adaptrix.safetensors",),), _detect_whole, _read, suffix=".adaptrix.safetensors")
FORMATS = (PEFT, INJECTION)


def plain(carries: Collection[str]) -> Format:
    """A format of one file that holds no more than it says: one rank and one scale for all, unless it carries more.

    Its writer asks nobody: it has no place for anything else, and fails.
    """
    return Format(
        "plain",
        (("*.plain.safetensors",),),
        lambda bundle: any(name.endswith(".plain.safetensors") for name in bundle.files),
        _read_plain,
        lambda plan, path: _write_plain(plan, path, carries),
        suffix=".plain.safetensors",
        carries=frozenset(carries),
    )


def _write_plain(plan: Plan, path: Path, carries: Collection[str]) -> None:
    deltas = of_class(plan.bound.deltas, LowRank)
    assert plan.complete
    assert len(deltas) == len(plan.bound.deltas)
    assert not plan.bound.adapter.extras
    assert all(delta.tensors().keys() == {"lora_A", "lora_B"} for delta in deltas.values())
    assert "rslora" in carries or not any(delta.rslora for delta in deltas.values())
    assert "mixed_rank" in carries or len({delta.rank for delta in deltas.values()}) == 1
    assert "mixed_scale" in carries or len({delta.scale for delta in deltas.values()}) == 1
    named = {f"{plan.bound.targets[site].path}": delta for site, delta in deltas.items()}
    tensors = {f"{path} {name}": tensor for path, delta in named.items() for name, tensor in delta.tensors().items()}
    scales = {path: delta.scale for path, delta in named.items()}
    safetensors_file.write(path, tensors, {"scales": json.dumps(scales)})


def _read_plain(bundle: Bundle) -> Adapter:
    (file,) = bundle.files.values()
    tensors, metadata = safetensors_file.read(file)
    deltas = {
        Target(path): LowRank(A := tensors[f"{path} lora_A"], tensors[f"{path} lora_B"], alpha=scale * A.shape[0])
        for path, scale in json.loads(metadata["scales"]).items()
    }
    return Adapter("plain", deltas, {}, Provenance(bundle.uri, "plain"))
