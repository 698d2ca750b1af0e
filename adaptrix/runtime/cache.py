"""A transformers cache that knows which adapters it was filled under, and what it takes to change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.selection import Selection


class AdapterCache(DynamicCache):
    """A :class:`~transformers.DynamicCache` with what entered the first injected layer beside it.

    ``depth``: that layer. ``entering``: the hidden states ``[batch, tokens, hidden]`` that entered it,
    one tensor a forward pass; ``positions`` and ``tokens`` likewise (the ids that the model was given).
    ``mask``: the newest attention mask. ``made_under``: the key of the selection in force, None while empty.
    """

    def __init__(self, config: Any, depth: int) -> None:
        super().__init__(config=config)
        self.depth = depth
        self.made_under: tuple[Any, ...] | None = None
        self.entering: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.mask: Tensor | None = None

    def note(self, selection: Selection, tokens: Tensor | None, mask: Tensor | None) -> None:
        """Takes down what a forward pass is about to add. Raises :class:`UsageError` under other adapters."""
        if self.made_under not in (None, selection.key):
            found = "the cache was filled under other adapters than those in force"
            remedy = "session.swap(choice, cache) makes it fit."
            raise UsageError(Problem("stale-cache", "past_key_values", found, "the same adapters", remedy))
        self.made_under = selection.key
        if selection.first_layer < self.depth:
            self.depth = 0  # what enters the layer depends on the adapter, so nothing below it can be kept
        if tokens is not None:
            self.tokens.append(tokens)
        self.mask = mask

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follows a beam search."""
        super().reorder_cache(beam_idx)
        self._each(lambda chunk: chunk.index_select(0, beam_idx.to(chunk.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        super().batch_repeat_interleave(repeats)
        self._each(lambda chunk: chunk.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        super().batch_select_indices(indices)
        self._each(lambda chunk: chunk[indices])

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Forgets the last tokens, here as in the keys and values."""
        super().crop(*args, **kwargs)
        length = self.get_seq_length()
        for chunks in (self.entering, self.positions, self.tokens):
            if chunks:
                chunks[:] = [torch.cat(chunks, dim=1)[:, :length]]
        self.mask = None if self.mask is None else self.mask[:, :length]

    def reset(self) -> None:
        """Empties it."""
        super().reset()  # type: ignore[no-untyped-call]  # transformers has no types there
        self.made_under, self.mask = None, None
        for chunks in (self.entering, self.positions, self.tokens):
            chunks.clear()

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for chunks in (self.entering, self.tokens):
            chunks[:] = [change(chunk) for chunk in chunks]
        self.positions[:] = [change(chunk) if len(chunk) > 1 else chunk for chunk in self.positions]
        self.mask = None if self.mask is None else change(self.mask)
