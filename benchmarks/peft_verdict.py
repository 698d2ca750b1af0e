"""What peft makes of one adapter on one base: run by ``bad_input.py`` in a process of its own."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
import transformers

#: tokens whose logits tell whether an adapter acts
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
#: words of the warnings that a missing or unknown tensor calls forth
_TELLING = ("missing", "unexpected", "mismatch", "no trainable", "not found")

Logits = torch.Tensor


def verdicts(base: Mapping[str, Any], folder: str, good: str) -> dict[str, str]:
    """A verdict each on ``PeftModel.from_pretrained(base, folder)`` and on ``load_adapter`` beside ``good``."""
    bare = _logits(_build(base))
    right = _logits(peft.PeftModel.from_pretrained(_build(base), good))
    beside = peft.PeftModel.from_pretrained(_build(base), good)
    return {
        "from_pretrained": _verdict(lambda: peft.PeftModel.from_pretrained(_build(base), folder), bare, right),
        "load_adapter": _verdict(lambda: _beside(beside, folder), bare, right) + _left_behind(beside),
    }


def _build(base: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**base)).eval()


def _logits(model: Any) -> Logits:
    with torch.no_grad():
        return model.eval()(PROMPT).logits.float()


def _beside(model: Any, folder: str) -> Any:
    model.load_adapter(folder, "other")
    model.set_adapter("other")
    return model


def _left_behind(model: Any) -> str:
    """Whether an adapter that could not be loaded is registered all the same."""
    failed = "other" in model.peft_config and model.active_adapter != "other"
    return " (and stays registered)" if failed else ""


def _verdict(load: Callable[[], Any], bare: Logits, right: Logits) -> str:
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            effect = _effect(_logits(load()), bare, right)
        except Exception as error:
            return f"refuses: {type(error).__name__}: {str(error) or 'without a word'}"
    if printed.getvalue():
        return f"RUNS IT: {printed.getvalue()}"
    said = [str(warning.message).lower() for warning in caught]
    told = any(word in text for text in said for word in _TELLING)
    return f"{'warns' if told else 'silent'}: {effect}"


def _effect(logits: Logits, bare: Logits, right: Logits) -> str:
    if not torch.isfinite(logits).all():
        return "NaN comes out"
    if torch.equal(logits, bare):
        return "a no-op"
    return "acts like the good one" if torch.allclose(logits, right, atol=1e-6) else "acts, in another way"
