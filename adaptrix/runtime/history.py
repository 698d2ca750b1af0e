"""The record of a cache: the inputs of its forward passes, and what entered the first injected layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adaptrix.errors import Problem, UsageError

#: inputs that are recorded, or that change no layer
_KNOWN = frozenset(
    [
        "input_ids",
        "inputs_embeds",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "use_cache",
        "return_dict",
        "logits_to_keep",
        "labels",
        "output_attentions",
        "output_hidden_states",
        "cache_position",
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The contribution of one forward pass: ``size`` tokens a row. Tensors have rows first and tokens second.

    ``tokens`` are ids, None where the model was given embeddings; ``positions`` and ``attended`` as given, None
    where the model was left to count, and to look at all of them; ``entering`` ``[rows, size, hidden]`` is what
    entered the layer that the cache watches. ``strange`` names other inputs that the pass had.
    """

    size: int
    tokens: Tensor | None = None
    positions: Tensor | None = None
    attended: Tensor | None = None
    entering: Tensor | None = None
    strange: frozenset[str] = frozenset()

    def changed(self, change: Callable[[Tensor], Tensor]) -> Chunk:
        """The chunk with every tensor changed alike."""
        tokens, positions, attended, entering = (
            None if tensor is None else change(tensor)
            for tensor in (self.tokens, self.positions, self.attended, self.entering)
        )
        return Chunk(self.size, tokens, positions, attended, entering, self.strange)

    def first(self, size: int) -> Chunk:
        """The chunk of its first ``size`` tokens a row."""
        return replace(self.changed(lambda tensor: tensor[:, :size]), size=size)


def chunk_of(given: Mapping[str, Any], past: int) -> Chunk | None:
    """The chunk that a pass with these inputs adds to a cache of ``past`` tokens; None where it has no tokens at all.

    Raises :class:`UsageError` for tokens that are there already.
    """
    shown = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if not isinstance(shown, Tensor) or shown.dim() < 2:
        return None
    rows, size = shown.shape[:2]
    strange = {name for name, value in given.items() if value is not None and name not in _KNOWN}
    strange |= {name for name in ("attention_mask", "position_ids") if not _flat(given.get(name))}
    mask = None if "attention_mask" in strange else given.get("attention_mask")
    positions = None if "position_ids" in strange else given.get("position_ids")
    if mask is not None:
        _require_width(mask.shape[1], past, size)
        mask = mask[:, past : past + size]
    if positions is not None:
        positions = positions.expand(rows, size)
        _require_onward(positions, mask, past)
    return Chunk(size, given.get("input_ids"), positions, mask, strange=frozenset(strange))


def _flat(value: object) -> bool:
    """True for an input that can be recorded: none, or one number a row and token."""
    return value is None or (isinstance(value, Tensor) and value.dim() == 2)


def _require_width(width: int, past: int, size: int) -> None:
    """Raises :class:`UsageError` for a mask too short for past and input: it would hide the newest tokens."""
    if width < past + size:
        found = f"it covers {width} tokens, and the cache holds {past} already while the input brings {size}"
        raise _twice("attention_mask", found, f"{past + size} tokens")


def _require_onward(positions: Tensor, mask: Tensor | None, past: int) -> None:
    """Raises :class:`UsageError` for a text that starts over after ``past`` tokens, as ``generate`` reads a prompt
    again that is in the cache to its end."""
    if past and mask is None and positions.shape[1] > 1 and bool((positions[:, 0] == 0).any()):
        raise _twice("position_ids", f"they begin at 0, and the cache holds {past} tokens already", f"from {past} on")


def _twice(where: str, found: str, expected: str) -> UsageError:
    remedy = "Give the model only what the cache lacks: a next token, or the last one after cache.crop(-1)."
    return UsageError(Problem("input", where, found, expected, remedy))


def trimmed(chunks: Sequence[Chunk], surplus: int) -> list[Chunk]:
    """The chunks without their last ``surplus`` tokens."""
    kept = list(chunks)
    while surplus > 0 and kept:
        last = kept.pop()
        if last.size > surplus:
            kept.append(last.first(last.size - surplus))
        surplus -= last.size
    return kept


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk for all, as if they had come in one pass; None for what one of them lacks and cannot be filled in."""
    return Chunk(
        sum(chunk.size for chunk in chunks),
        _together([chunk.tokens for chunk in chunks]),
        _together(_counted(chunks)),
        _together(_seen(chunks)),
        _together([chunk.entering for chunk in chunks]),
        frozenset().union(*(chunk.strange for chunk in chunks)),
    )


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if not present or len(present) < len(tensors):
        return None
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


def _counted(chunks: Sequence[Chunk]) -> list[Tensor | None]:
    """Positions, counted on from the past where a pass was given none while others were."""
    model = next((chunk.positions for chunk in chunks if chunk.positions is not None), None)
    found, past = [], 0
    for chunk in chunks:
        own = chunk.positions
        if own is None and model is not None:
            own = torch.arange(past, past + chunk.size, device=model.device).expand(len(model), -1)
        found.append(own)
        past += chunk.size
    return found


def _seen(chunks: Sequence[Chunk]) -> list[Tensor | None]:
    """Masks, all ones where a pass was given none while others were."""
    model = next((chunk.attended for chunk in chunks if chunk.attended is not None), None)
    if model is None:
        return [None]
    return [c.attended if c.attended is not None else model.new_ones(len(model), c.size) for c in chunks]
