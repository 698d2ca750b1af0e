"""A training that was stopped: what it takes to go on, in a safetensors file.

``key`` says what was being trained on what: a state of another base, data or settings is not gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptrix import Problem, UsageError
from adaptrix import Tensor as Stored
from adaptrix.extend import as_torch, atomic, safetensors_file


@dataclass(frozen=True)
class RunState:
    """The file of a training's state, and the key of the training."""

    path: Path
    key: str

    @classmethod
    def at(cls, path: Path, key: Mapping[str, Any]) -> RunState:
        """The file at a path, for what ``key`` describes."""
        return cls(path, json.dumps(key, sort_keys=True))

    def read(self, names: Collection[str], fields: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors by ``names`` and numbers by ``fields`` of the state; None where nothing was begun.

        Raises :class:`UsageError` for the state of another training, and for one that is damaged.
        """
        if not self.path.exists():
            return None
        tensors, metadata = safetensors_file.read(self.path)
        if metadata.get("key") != self.key or tensors.keys() != set(names):
            raise self._refused("run-state", "the state of another training: of another base, data or settings")
        numbers = _numbers(metadata.get("state", ""))
        if numbers is None or numbers.keys() != set(fields):
            raise self._refused("run-state", "its numbers cannot be read")
        return {name: as_torch(tensor) for name, tensor in tensors.items()}, numbers

    def write(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Replaces what was there, whole or not at all."""
        stored = {name: Stored.of(tensor.cpu().numpy()) for name, tensor in tensors.items()}
        with atomic.output(self.path, force=True, makes=True) as work:
            safetensors_file.write(work, stored, {"key": self.key, "state": json.dumps(dict(numbers))})

    def _refused(self, code: str, found: str) -> UsageError:
        return UsageError(Problem(code, str(self.path), found, remedy="Remove it to start over."))

    def remove(self) -> None:
        """For when it is of no more use."""
        self.path.unlink(missing_ok=True)


def _numbers(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
