"""The types of adapter that peft knows, and the remedies for those that are no LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from adaptrix.errors import Problem

#: the types that are no LoRA: names, nature, remedy
_OTHERS = (
    (
        "ADALORA VERA PVERA VBLORA UNILORA MISS GRALORA LOHA PEANUT",
        "is a LoRA in another parametrisation",
        "Load it on its base with peft and call peft.save_as_lora(path, model, rank), then convert that.",
    ),
    (
        "HRA PSOFT TINYLORA DEFT",
        "is low-rank once the base weight is known",
        "Load it on its base with peft and call peft.save_as_lora(path, model, rank), then convert that.",
    ),
    (
        "LOKR FOURIERFT WAVEFT C3A RANDLORA SHIRA",
        "is a dense change of the weight",
        "peft.save_as_lora(path, model, rank) can approximate it.",
    ),
    ("IA3 OFT BOFT ROAD HIRA", "multiplies the base weight", "Merge it into its base with peft instead."),
    (
        "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT POLY XLORA CPT LN_TUNING"
        " TRAINABLE_TOKENS CARTRIDGE SHADOW",
        "does not change weights by a delta",
        "Use it through peft.",
    ),
    (
        "ADAMSS BEFT LILY FROD GLORA OSF DELORA SUPERTUNING BONE",
        "is not a LoRA",
        "Merge it into its base with peft, or use it through peft.",
    ),
)
_ADVICE = MappingProxyType({name: (nature, remedy) for names, nature, remedy in _OTHERS for name in names.split()})


def type_problems(kind: Any, where: str) -> Iterator[Problem]:
    """A problem for a config's ``peft_type`` other than LoRA."""
    if kind == "LORA":
        return
    if kind is None:
        found, remedy = "the key is missing", 'Add "peft_type": "LORA" if it is one.'
    elif isinstance(kind, str) and kind.upper() == "LORA":
        found, remedy = repr(kind), "peft is strict about case: write it in capitals."
    elif isinstance(kind, str) and kind in _ADVICE:
        nature, remedy = _ADVICE[kind]
        found = f"{kind}, which {nature}"
    else:
        found, remedy = repr(kind)[:200], "No version of peft up to 0.21 knows this type."
    yield Problem("peft-type", where, found, '"LORA"', remedy)
