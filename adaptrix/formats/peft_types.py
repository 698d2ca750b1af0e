"""The types of adapter that peft knows, and the remedies for those that are no LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from adaptrix.errors import Problem
from adaptrix.formats.peft_config_keys import TYPES

_AS_LORA = "Load it on its base with peft and call peft.save_as_lora(path, model, rank), then convert that."
_MERGE = (
    "Load it on its base with peft, merge_and_unload() it and save that; `adaptrix extract` makes a LoRA of the two."
)
_PEFT = "Use it through peft."

#: the types that are no LoRA: names, nature, remedy; a test runs each remedy
_OTHERS = (
    ("UNILORA", "is a LoRA in another parametrisation", _AS_LORA),
    ("PVERA PEANUT", "is a LoRA in another parametrisation", _MERGE),
    ("PSOFT TINYLORA", "is low-rank once the base weight is known", _AS_LORA),
    ("HRA DEFT", "is low-rank once the base weight is known", _MERGE),
    ("WAVEFT RANDLORA", "is a dense change of the weight", f"{_AS_LORA} It is an approximation."),
    ("OFT BOFT ROAD HIRA", "multiplies the base weight", _MERGE),
    (
        "PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADAPTION_PROMPT POLY XLORA CPT CARTRIDGE SHADOW",
        "does not change weights by a delta",
        _PEFT,
    ),
    ("TRAINABLE_TOKENS", "replaces rows of an embedding", _MERGE.partition(";")[0] + "."),
    ("FROD GLORA OSF SUPERTUNING LN_TUNING", "is not a LoRA", _MERGE),
    ("ADAMSS BEFT LILY BONE", "is not a LoRA", _PEFT),
)
_ADVICE = MappingProxyType({name: (nature, remedy) for names, nature, remedy in _OTHERS for name in names.split()})


def type_problems(kind: Any, where: str) -> Iterator[Problem]:
    """A problem for a config's ``peft_type`` other than LoRA."""
    if isinstance(kind, str) and kind in TYPES:
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
