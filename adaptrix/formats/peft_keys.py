"""The names of tensors in a PEFT checkpoint, past and present, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


PREFIX = "base_model.model."
_STRAY = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.")
_LORA = re.compile(
    r"(?P<path>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_NAME = re.compile(r"[^\s/\\{}\x00-\x1f\x7f]{1,1024}")


@dataclass(frozen=True, slots=True)
class Key:
    """A tensor's name without prefixes. ``kind`` is None for a tensor that is no part of a LoRA."""

    path: str
    kind: str | None = None
    leaf: str | None = None
    adapter: str | None = None
    prefix: str = ""

    @property
    def plain(self) -> str:
        """The key as peft writes it, without the prefix."""
        return ".".join(filter(None, (self.path, self.kind, self.leaf)))


def parse(name: str) -> Key | None:
    """The parts of a tensor's name; None where it cannot be a path of modules."""
    rest = name
    while rest.startswith(_STRAY):
        rest = rest.removeprefix(next(stray for stray in _STRAY if rest.startswith(stray)))
    prefix = name[: len(name) - len(rest)]
    if not _NAME.fullmatch(name) or not all(rest.split(".")):
        return None
    if hit := _LORA.fullmatch(rest):
        return Key(hit["path"], hit["kind"], hit["leaf"], hit["adapter"], prefix)
    saved = re.fullmatch(r"(.+)\.modules_to_save\.([^.]+)\.(.+)", rest)
    if saved:
        return Key(f"{saved[1]}.{saved[3]}", adapter=saved[2], prefix=prefix)
    tokens = re.fullmatch(r"(.+\.token_adapter\.trainable_tokens_delta)(?:\.([^.]+))?", rest)
    if tokens:
        return Key(tokens[1], adapter=tokens[2], prefix=prefix)
    return Key(rest, prefix=prefix)


def odd_prefixes(keys: Iterable[Key]) -> dict[str, int]:
    """Prefixes other than peft's own, with how many keys carry each."""
    counts: dict[str, int] = {}
    for key in keys:
        if key.prefix != PREFIX:
            counts[key.prefix] = counts.get(key.prefix, 0) + 1
    return counts
