"""The record of what a merged model was made of, for whoever wants to make it again, or to undo it.

To undo a merge is to take the base again: subtraction gives other numbers, for rounding has lost what it lost.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from adaptrix.base.checkpoint import Base
from adaptrix.planning.plan import Plan

RECORD = "adaptrix_merge.json"
VERSION = 1


def record(plan: Plan, base: Base, dtype: str | None, qlora_base: str | None) -> dict[str, Any]:
    """What was merged into what; paths on this disk are named by their last part alone."""
    source = plan.bound.adapter.provenance
    return {
        "version": VERSION,
        "base": {"model": base.name if base.commit else PurePath(base.name).name, "commit": base.commit},
        "adapter": {
            "uri": source.uri if source.commit else PurePath(source.uri).name,
            "commit": source.commit,
            "files": dict(source.files),
        },
        "plan": {"policy": plan.policy, "layers": {stack: list(layers) for stack, layers in plan.layers.items()}},
        "dtype": dtype,
        "qlora_base": qlora_base,
    }
