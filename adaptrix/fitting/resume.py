"""A fit that was interrupted: what it takes to go on, in a safetensors file beside the output.

``key`` says what was being fitted: a state of another text, adapter, base or number of steps is not gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptrix import atomic
from adaptrix.errors import Problem, UsageError
from adaptrix.fitting.place import state_file
from adaptrix.fitting.refit import LISTS, State
from adaptrix.formats import safetensors_file
from adaptrix.runtime.tensors import as_torch
from adaptrix.tensor import Tensor as Stored


@dataclass(frozen=True)
class Saved:
    """The file of a fit's state, and the key of the fit."""

    path: Path
    key: str

    @classmethod
    def beside(cls, out: Path, key: Mapping[str, Any]) -> Saved:
        """The one that belongs to an output."""
        return cls(state_file(out), json.dumps(key, sort_keys=True))

    def layers(self) -> tuple[int, ...] | None:
        """The layers that were chosen; None where no fit was begun. Raises :class:`UsageError` for another fit's."""
        if not self.path.exists():
            return None
        metadata = safetensors_file.read(self.path)[1]
        if metadata.get("key") != self.key:
            found = "the state of another fit: of another text, adapter or base, or with other options"
            raise UsageError(Problem("other-fit", str(self.path), found, remedy="Remove it to begin anew."))
        return tuple(json.loads(metadata["layers"]))

    def state(self, leaves: Sequence[torch.Tensor]) -> State:
        """The state, its tensors like the leaves."""
        tensors, metadata = safetensors_file.read(self.path)

        def like_leaves(name: str) -> list[torch.Tensor]:
            stored = (tensors[f"{name}.{at}"] for at in range(len(leaves)))
            return [as_torch(one, leaf.device) for one, leaf in zip(stored, leaves, strict=True)]

        now, first, second, best = map(like_leaves, LISTS)
        return State(now, first, second, best, **json.loads(metadata["state"]))

    def write(self, layers: tuple[int, ...], state: State) -> None:
        """Replaces what was there, whole or not at all."""
        tensors = {name: Stored.of(leaf.cpu().numpy()) for name, leaf in state.tensors().items()}
        numbers = {"best_kl": state.best_kl, "step": state.step, "waited": state.waited}
        metadata = {"key": self.key, "layers": json.dumps(layers), "state": json.dumps(numbers)}
        with atomic.output(self.path, force=True) as work:
            safetensors_file.write(work, tensors, metadata)

    def remove(self) -> None:
        """For when it is of no more use."""
        self.path.unlink(missing_ok=True)
