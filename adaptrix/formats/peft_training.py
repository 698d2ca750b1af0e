"""Variants of LoRA that differ from it in training alone: they are read, and act, as the LoRA that they are.

VeLoRA compresses what the backward pass keeps, MonteCLoRA samples noise for A. Neither is done in evaluation mode or
in a merge (``VeloraLinearVariant`` and ``MontecloraLinearVariant`` in ``peft/tuners/lora/variants.py``), so that ΔW is
scale · B·A whatever their own tensors are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from adaptrix.errors import Problem

#: a key of the config -> what it does in training, and what stands in the names of the tensors that it adds
_VARIANTS = MappingProxyType(
    {
        "velora_config": ("VeLoRA, which compresses what its backward pass keeps", ".lora_velora_"),
        "monteclora_config": ("MonteCLoRA, which samples noise while it is trained", ".lora_monteclora_sampler."),
    }
)
#: keys of other variants: peft loads no LoRA of two variants
_OTHERS = ("use_dora", "arrow_config", "alora_invocation_tokens", "use_bdlora", "kasa_config")


def variant_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """A note for a variant of training, and an error where it is joined with another variant."""
    asked = [key for key in _VARIANTS if raw.get(key)]
    others = [key for key in (*asked[1:], *_OTHERS) if raw.get(key)]
    for key in asked:
        where = f"adapter_config.json {key}"
        if others:
            found = f"set, and {' and '.join(others)} too"
            remedy = "peft loads no LoRA of two variants: restore the config that it was trained with."
            yield Problem("variant-unsupported", where, found, "one variant", remedy)
            return
        found = f"{_VARIANTS[key][0]}: it acts, and would be trained here, as the plain LoRA of its A and B"
        yield Problem("summary", where, found, severity="note")


def is_of_training(path: str, raw: Mapping[str, Any]) -> bool:
    """True for the path of a tensor that a variant named in the config has beside A and B, for its training."""
    return any(raw.get(key) and stem in f".{path}" for key, (_, stem) in _VARIANTS.items())
