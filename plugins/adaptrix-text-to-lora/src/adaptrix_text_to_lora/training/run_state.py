"""A training run that was interrupted: what it takes to go on, in a safetensors file in its folder.

``key`` says what was being trained on what: a state of another run is not gone on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adaptrix import Problem, UsageError
from adaptrix import Tensor as Stored
from adaptrix.extend import as_stored, as_torch, atomic, refuse, safetensors_file
from adaptrix_text_to_lora.training.loop import State

NAME = "training.safetensors"
_GROUPS = ("network", "first", "second")


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of the run in a folder."""

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        return self.folder / NAME

    def read(self) -> State | None:
        """The last state that was taken down; None where there is none. Raises :class:`AdaptrixError`."""
        if not self.path.exists():
            return None
        tensors, metadata = safetensors_file.read(self.path)
        if metadata.get("key") != self.key:
            found = "the state of another run: with other settings, on other data, or for another base"
            remedy = "Write elsewhere, or start over with --force."
            raise UsageError(Problem("run-state", str(self.path), found, "this run's", remedy))
        groups = {group: _group(tensors, group) for group in _GROUPS}
        if "curve" not in tensors or not all(groups.values()):
            raise refuse("run-state", self.path, "it is no state of a run", remedy="Start over with --force.")
        curve = as_torch(tensors["curve"])
        return State(len(curve), curve=curve, **groups)

    def write(self, state: State) -> None:
        """Replaces what was there, whole or not at all."""
        named = {f"{group}/{name}": tensor for group in _GROUPS for name, tensor in getattr(state, group).items()}
        stored = {name: as_stored(tensor) for name, tensor in {**named, "curve": state.curve}.items()}
        self.folder.mkdir(exist_ok=True)
        with atomic.output(self.path, force=True) as work:
            safetensors_file.write(work, stored, {"key": self.key})

    def remove(self) -> None:
        """For when it is of no more use."""
        self.path.unlink(missing_ok=True)


def _group(tensors: dict[str, Stored], group: str) -> dict[str, Tensor]:
    """The tensors of a group, which is what is before the first slash of their names."""
    return {name.partition("/")[2]: as_torch(one) for name, one in tensors.items() if name.startswith(f"{group}/")}
