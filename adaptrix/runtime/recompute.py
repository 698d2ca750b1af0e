"""The adapters that a layer is recomputed under.

Gradient checkpointing runs layers a second time in the middle of the backward pass: when the forward pass is
long over, after other adapters were activated, in a thread of autograd's. What a recomputation starts from are
tensors that its forward pass has saved. They are saved with the active selection beside them, so that the
selection comes back with them; where none comes back, a recomputation is refused, never guessed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.errors import refuse

_UNPACKED = threading.local()


def recomputable(model: nn.Module) -> list[nn.Module]:
    """The modules for which transformers can turn gradient checkpointing on."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def checkpointing(layers: Iterable[nn.Module]) -> bool:
    """True if a forward pass now would have layers that are recomputed."""
    return torch.is_grad_enabled() and any(layer.gradient_checkpointing and layer.training for layer in layers)


def in_backward() -> bool:
    """True inside a backward pass, where modules run only to be recomputed."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def noting(chosen: Mapping[int, Any], attached: Callable[[], bool]) -> Any:
    """A block in which tensors are saved for the backward pass with what is chosen, by session.

    Hooks on saved tensors that are there already go on doing what they do: offloading, or noting for another session.
    """
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    pack, unpack = top or (_itself, _itself)
    other = getattr(unpack, "__self__", None)
    before = other.chosen if isinstance(other, _Noting) else {}
    noted = _Noting({**before, **chosen}, attached, pack, unpack)
    return torch.autograd.graph.saved_tensors_hooks(noted.pack, noted.unpack)


@dataclass(frozen=True, slots=True)
class _Noting:
    """Hooks on saved tensors, over those that were there."""

    chosen: Mapping[int, Any]
    attached: Callable[[], bool]
    pack_further: Callable[[Tensor], Any]
    unpack_first: Callable[[Any], Tensor]

    def pack(self, tensor: Tensor) -> Any:
        return self.pack_further(tensor)

    def unpack(self, packed: Any) -> Tensor:
        if not self.attached():
            found = "the session was detached before the backward pass, which runs layers again"
            raise refuse("session-state", "gradient checkpointing", found, remedy="Detach after loss.backward().")
        tensor = self.unpack_first(packed)
        _UNPACKED.task, _UNPACKED.chosen = torch._C._current_graph_task_id(), self.chosen
        return tensor


def recomputed() -> Mapping[int, Any]:
    """The selections, by session, of the forward pass of the layer that now runs again.

    Raises :class:`RefusedError` where a checkpoint was not taken inside a forward pass of the model.
    """
    if getattr(_UNPACKED, "task", None) != torch._C._current_graph_task_id():
        found = "the model, or a part of it, runs again in a backward pass, and under which adapters is not known"
        remedy = "Call the model itself, with model.gradient_checkpointing_enable()."
        raise refuse("checkpointing", "checkpoint", found, "gradient checkpointing of the model's own", remedy)
    chosen: Mapping[int, Any] = _UNPACKED.chosen
    return chosen


def _itself(value: Any) -> Any:
    return value
