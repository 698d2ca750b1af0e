"""The kinds of files that hold a model's weights: safetensors, and torch's own from the years before.

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
    """One kind: what a single file is called, an index of several, how their names end, and what reads one."""

    single: str
    index: str
    suffix: str
    read: Callable[[Path], Held]

    def written(self, file: str) -> str:
        """What a file is called once it is safetensors."""
        if self.suffix == SAFETENSORS.suffix:
            return file
        return file.removeprefix("pytorch_").removesuffix(self.suffix) + SAFETENSORS.suffix

    @property
    def shards(self) -> str:
        """The pattern of the names of several files."""
        return self.single.replace(".", "-*-of-*.")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those of all its files."""
        return self.single, self.index, self.shards

    def is_in(self, folder: Path) -> bool:
        return (folder / self.single).is_file() or (folder / self.index).is_file()


def _by_torch(path: Path) -> Held:
    return torch_file.read(path), {}


SAFETENSORS = FileKind("model.safetensors", "model.safetensors.index.json", ".safetensors", safetensors_file.read)
TORCH = FileKind("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin", _by_torch)
#: the one that is taken where a folder has both comes first, as it does for transformers
KINDS = (SAFETENSORS, TORCH)
SINGLE, INDEX = SAFETENSORS.single, SAFETENSORS.index
