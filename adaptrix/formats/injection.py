"""The injection file: one safetensors file with every delta by site and a JSON manifest.

Tensors: ``<site>.lora_A`` and so on as the source had them, ``plan.<site>.…`` for deltas that the plan
put in their place, ``extras.<key>`` for what is no delta. The metadata key ``adaptrix`` holds the
manifest; docs/concepts/injection-file.md describes it. Nothing in it depends on when or where it was written, so equal
input gives equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from adaptrix.formats import injection_kinds, safetensors_file
from adaptrix.planning.plan import Plan
from adaptrix.records import Bundle
from adaptrix.tensor import Tensor

SUFFIX = ".adaptrix.safetensors"
VERSION = 1


def detect(bundle: Bundle) -> bool:
    """True for a file with the suffix, or a single file with the manifest in its metadata; only its header is read."""
    if any(name.endswith(SUFFIX) for name in bundle.files):
        return True
    return len(bundle.files) == 1 and all(safetensors_file.has_metadata(p, "adaptrix") for p in bundle.files.values())


def write(plan: Plan, path: Path) -> None:
    """Writes a plan and everything that its adapter holds, inactive deltas included."""
    manifest = json.dumps(_manifest(plan), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    safetensors_file.write(path, _tensors(plan), {"adaptrix": manifest})


def _tensors(plan: Plan) -> dict[str, Tensor]:
    named = {f"{site}.{name}": t for site, delta in plan.bound.deltas.items() for name, t in delta.tensors().items()}
    named |= {f"plan.{site}.{name}": t for site, delta in plan.overrides.items() for name, t in delta.tensors().items()}
    return named | {f"extras.{key}": extra.tensor for key, extra in plan.bound.adapter.extras.items()}


def _manifest(plan: Plan) -> dict[str, Any]:
    bound, adapter = plan.bound, plan.bound.adapter
    source = adapter.provenance
    return {
        "version": VERSION,
        "name": adapter.name,
        "base": {
            "model": adapter.base,
            "architecture": bound.architecture.family,
            "known": bool(bound.architecture.dims),
            "dims": {
                name: {"value": value, "from": bound.dims.origins[name]} for name, value in bound.dims.values.items()
            },
        },
        "source": {
            # a local path may be private; the digests identify the files
            "uri": source.uri if source.commit else PurePath(source.uri).name,
            "format": source.format,
            "commit": source.commit,
            "files": dict(source.files),
            "config": dict(source.config),
            "altered": adapter.altered,
        },
        "plan": {
            "policy": plan.policy,
            "layers": {stack: list(layers) for stack, layers in plan.layers.items()},
            "gains": {str(layer): gain for layer, gain in plan.gains.items()},
            "retained": plan.retained,
            "notes": [note.found for note in plan.notes],
        }
        | ({"fit": asdict(plan.fit)} if plan.fit else {}),
        "deltas": {str(s): injection_kinds.entry(d, bound.targets[s], s) for s, d in bound.deltas.items()},
        "overrides": {str(s): injection_kinds.entry(d, bound.targets[s], s) for s, d in plan.overrides.items()},
        "extras": {key: extra.kind for key, extra in adapter.extras.items()},
    }
