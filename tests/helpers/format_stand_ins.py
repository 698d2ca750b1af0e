"""Formats as far as a source needs them: their file names, and what a file of another name begins with."""

from __future__ import annotations

from adaptrix.adapter import Adapter
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
