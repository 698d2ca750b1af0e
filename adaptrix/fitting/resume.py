"""The state of an interrupted fit, in a safetensors file beside the output, from which the same command resumes.

It holds the losses of sets of layers first, and once layers are chosen, these and the state of the training. ``key``
identifies the fit: a state of another text, adapter, base or number of steps is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptrix import atomic
from adaptrix.destination import state_file
from adaptrix.errors import Problem, RefusedError, UsageError
from adaptrix.fitting.refit import LISTS, State
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import as_torch


@dataclass(frozen=True)
class FitState:
    """The file of a fit's state, and the key that identifies the fit."""

    path: Path
    key: str

    @classmethod
    def beside(cls, out: Path, key: Mapping[str, Any]) -> FitState:
        """The state that belongs to an output."""
        return cls(state_file(out), json.dumps(key, sort_keys=True))

    def layers(self) -> tuple[int, ...] | None:
        """The layers that were chosen; None where none are yet. Raises :class:`UsageError` for another fit's file."""
        stated = self._metadata().get("layers")
        return None if stated is None else tuple(json.loads(stated))

    def losses(self) -> dict[tuple[int, ...], float]:
        """The measured losses of sets of layers. Raises as :meth:`layers` does."""
        return {tuple(layers): loss for layers, loss in json.loads(self._metadata().get("losses", "[]"))}

    def _metadata(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        metadata = safetensors_file.read(self.path)[1]
        if metadata.get("key") != self.key:
            found = "the state of another fit: of another text, adapter or base, or with other options"
            raise UsageError(Problem("run-state", str(self.path), found, remedy="Remove it to start again."))
        return metadata

    def state(self, leaves: Sequence[torch.Tensor]) -> State | None:
        """The state, its tensors like the leaves; None where no training has begun."""
        if self.layers() is None:
            return None
        tensors, metadata = safetensors_file.read(self.path)

        def like_leaves(name: str) -> list[torch.Tensor]:
            stored = (tensors[f"{name}.{at}"] for at in range(len(leaves)))
            return [as_torch(one, leaf.device) for one, leaf in zip(stored, leaves, strict=True)]

        now, first, second, best = map(like_leaves, LISTS)
        return State(now, first, second, best, **json.loads(metadata["state"]))

    def write_losses(self, losses: Mapping[tuple[int, ...], float]) -> None:
        """Writes the losses of sets of layers, as :meth:`write` writes a state."""
        self._replace({}, {"losses": json.dumps(list(losses.items()))})

    def write(self, layers: tuple[int, ...], state: State) -> None:
        """Replaces the file by the chosen layers and a state of their training, whole or not at all."""
        tensors = {name: Stored.of(leaf.cpu().numpy()) for name, leaf in state.tensors().items()}
        numbers = {"best_kl": state.best_kl, "step": state.step, "waited": state.waited}
        self._replace(tensors, {"layers": json.dumps(layers), "state": json.dumps(numbers)})

    def _replace(self, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
        with atomic.output(self.path, force=True, makes=True) as work:
            safetensors_file.write(work, dict(tensors), {"key": self.key, **metadata})

    @contextmanager
    def kept(self, done: Callable[[], str]) -> Iterator[None]:
        """Keeps the file where the work in the block is interrupted, with a note on the error that says so.

        ``done``: describes how much is kept. A refusal would come again, so it removes the file, unless it is about
        the file itself (a full disk).
        """
        try:
            yield
        except RefusedError as error:
            if not any(problem.where == str(self.path) for problem in error.problems):
                self.remove()
            raise
        except BaseException as error:
            if self.path.exists():
                error.add_note(f"{self.path} keeps {done()}: the same command goes on from there")
            raise

    def remove(self) -> None:
        """Removes the file, if there is one."""
        self.path.unlink(missing_ok=True)
