"""The kinds of files that hold a model's weights: safetensors, and torch's older pickles.

torch's files are read by :mod:`adaptrix.formats.torch_file`, which runs no pickle. Whatever is written is safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptrix.formats import safetensors_file, torch_file
from adaptrix.tensor import Tensor

#: tensors by name, and the file's own metadata
Held = tuple[dict[str, Tensor], dict[str, str]]


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind: the names of a single file and of the index of several, their suffix, and the reader of a file."""

    single: str
    index: str
    suffix: str
    read: Callable[[Path], Held]

    def written(self, file: str) -> str:
        """The name of a file once it is written as safetensors."""
        if self.suffix == SAFETENSORS.suffix:
            return file
        return file.removeprefix("pytorch_").removesuffix(self.suffix) + SAFETENSORS.suffix

    @property
    def shards(self) -> str:
        """The pattern of the names of several files."""
        return self.single.replace(".", "-*-of-*.")

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of the names of all its files."""
        return self.single, self.index, self.shards

    def is_in(self, folder: Path) -> bool:
        return (folder / self.single).is_file() or (folder / self.index).is_file()


def _by_torch(path: Path) -> Held:
    return torch_file.read(path), {}


SAFETENSORS = FileKind("model.safetensors", "model.safetensors.index.json", ".safetensors", safetensors_file.read)
TORCH = FileKind("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin", _by_torch)
#: in order of preference, which is that of transformers
KINDS = (SAFETENSORS, TORCH)
SINGLE, INDEX = SAFETENSORS.single, SAFETENSORS.index
