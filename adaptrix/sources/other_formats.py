"""Adapters of formats that are not read, recognised by file names and, on this disk, by tensor names."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from adaptrix.errors import AdaptrixError
from adaptrix.sources.full_model import header_names

#: the beginning of a file, or the names of its tensors; nothing where it cannot be read
Peek = Callable[[str], tuple[bytes, Sequence[str]]]

_READ = "This format is not read."
_FUSE = f"{_READ} mlx-lm fuses it into its model: mlx_lm.fuse."
_DIFFUSERS = f"{_READ} diffusers loads it: pipeline.load_lora_weights(path)."
_JOIN = "Join them with safetensors.torch: load_file each, and save_file all tensors as adapter_model.safetensors."
#: a pattern of a file's name -> what has files of such names, and what to do
_BY_NAME = (
    ("adapters.npz", "an mlx adapter of an early version", _FUSE),
    ("pytorch_lora_weights.*", "a LoRA of diffusers", _DIFFUSERS),
    ("adapter_model-?????-of-?????.*", "a PEFT checkpoint in several shards, which peft does not load", _JOIN),
)
#: likewise, of a file that was named itself: a folder with one of these may hold anything
_BY_OWN_NAME = (
    ("training_args.bin", "the arguments of a training", "The adapter is adapter_model.safetensors beside it."),
    ("*.npz", "an archive of numpy", f"{_READ} Save its arrays with safetensors, beside a PEFT config."),
    ("*.pt", "a file of torch", f"{_READ} If it holds a PEFT state dict, save it as adapter_model.safetensors."),
)
#: what the name of a tensor begins or ends with -> likewise
_BY_TENSOR = (
    ("lora_unet_*", "a LoRA of kohya's sd-scripts", _DIFFUSERS),
    ("lora_te*", "a LoRA of kohya's sd-scripts", _DIFFUSERS),
    ("*.lora_down.weight", "a LoRA of kohya's form", _DIFFUSERS),
    ("unet.*lora*", "a LoRA of diffusers", _DIFFUSERS),
    ("transformer.*.lora_A.*", "a LoRA of diffusers", _DIFFUSERS),
)
_FIRST = 1 << 16


def other_format(names: Sequence[str], peek: Peek | None = None) -> tuple[str, str] | None:
    """The kind of some files, and what to do with it; None where they are of no format that is known here.

    - ``names``: of the files of one folder, or of one file.
    - ``peek``: reads the beginning and the tensor names of one of them; None where that costs a download.
    """
    for pattern, what, remedy in (*_BY_NAME, *(_BY_OWN_NAME if len(names) == 1 else ())):
        if any(fnmatchcase(name, pattern) for name in names):
            return what, remedy
    return next(_by_content(names, peek), None) if peek is not None else None


def _by_content(names: Sequence[str], peek: Peek) -> Iterator[tuple[str, str]]:
    for name in sorted(names)[:16]:
        if name.endswith(".safetensors"):
            tensors = peek(name)[1]
            for pattern, what, remedy in _BY_TENSOR:
                if any(fnmatchcase(tensor, pattern) for tensor in tensors):
                    yield what, remedy


def peek_into(folder: Path) -> Peek:
    """A reader of the files of a folder on this disk."""

    def peek(name: str) -> tuple[bytes, Sequence[str]]:
        try:
            with open(folder / name, "rb") as file:
                start = file.read(_FIRST)
            return start, (header_names(folder / name) or ()) if name.endswith(".safetensors") else ()
        except (OSError, ValueError, RecursionError, AdaptrixError, struct.error):
            return b"", ()  # only a message depends on it

    return peek
