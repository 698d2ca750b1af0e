"""A transformers cache that knows which adapters it was filled under, and what it takes to change them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from adaptrix.errors import Problem, UsageError
from adaptrix.runtime.filled import Filled, keys_of, note, noted
from adaptrix.runtime.history import Chunk, chunk_of, joined, trimmed
from adaptrix.runtime.selection import Selection


class AdapterCache(DynamicCache):
    """A :class:`~transformers.DynamicCache` with what entered the first injected layer beside it.

    That is one hidden state a token, ``hidden / (2 · layers · kv_heads · head_dim)`` of the bytes of the keys and
    values: 1/64 for a Llama of 32 layers, 1/16 where it has a key head for four query heads.

    ``depth``: the lowest layer that an adapter changes; all of them for one that changes none. ``owner``: the
    number of its session. ``made_under``: the key of the selection that it was filled under, if it holds anything.
    ``chunks``: what it was filled with; ``mask``: the newest attention mask.
    """

    def __init__(self, config: Any, depth: int, owner: int) -> None:
        super().__init__(config=config)
        self.config, self.depth, self.owner = config, depth, owner
        self.made_under: tuple[Any, ...] | None = None
        self.chunks: list[Chunk] = []
        self.mask: Tensor | None = None
        note(self, self.owner, None)

    @property
    def counts(self) -> bool:
        """True where it knows how many tokens it holds, which caches of states alone, such as Mamba's, do not."""
        try:
            self.get_seq_length()
        except ValueError:
            return False
        return True

    def note(self, owner: int, selection: Selection, given: Mapping[str, Any]) -> None:
        """Records what a forward pass is about to add. Raises :class:`UsageError` under other adapters."""
        past = self.get_seq_length()
        self.require_fit(owner, selection, past)
        chunk = chunk_of(given, past)
        self._drop_unfinished(past)
        if not past and selection.first_layer < self.depth:
            self.depth = 0  # what enters the layer depends on the adapter, so nothing below it can be kept
        self.made_under = selection.key
        if chunk is not None:
            self.chunks.append(chunk)
        self.mask = given.get("attention_mask")

    def enter(self, hidden: Tensor) -> None:
        """Records what enters the layer at ``depth``, in the pass noted last."""
        if self.chunks and self.chunks[-1].entering is None:
            self.chunks[-1] = replace(self.chunks[-1], entering=hidden.detach())

    def filled(self) -> Chunk:
        """Everything that the cache was filled with. Raises :class:`UsageError` where that is not known."""
        lengths = {layer.get_seq_length() for layer in self.layers if isinstance(layer, DynamicLayer)}
        length = self.get_seq_length()
        self._drop_unfinished(length)
        remedy = "Make a new cache and give the model the whole prompt."
        if len(lengths) > 1:
            found = "its layers hold different numbers of tokens: a forward pass was interrupted"
            raise UsageError(Problem("cache-mismatch", "swap", found, "the same number in each", remedy))
        if sum(chunk.size for chunk in self.chunks) != length:
            found = "it was filled by passes that the session did not see"
            raise UsageError(Problem("cache-mismatch", "swap", found, "calls of the session's model alone", remedy))
        return joined(self.chunks)

    def become(self, **state: Any) -> None:
        """Changes attributes all at once: an interrupt comes before or after, never between."""
        vars(self).update(state)

    def fork(self) -> AdapterCache:
        """Another cache of the same content. They share tensors, none of which is ever changed in place."""
        other = copy.copy(self)
        other.become(layers=[copy.copy(layer) for layer in self.layers], chunks=list(self.chunks))
        return other

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follows a beam search."""
        super().reorder_cache(beam_idx)
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row."""
        super().batch_repeat_interleave(repeats)
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        super().batch_select_indices(indices)
        self._each(lambda tensor: tensor[indices])

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Forgets the last tokens, here as in the keys and values."""
        super().crop(*args, **kwargs)
        length = self.get_seq_length()
        self._drop_unfinished(length)
        self.mask = self.mask[:, :length] if isinstance(self.mask, Tensor) else self.mask

    def reset(self) -> None:
        """Empties it."""
        super().reset()  # type: ignore[no-untyped-call]  # transformers has no types there
        self.become(made_under=None, mask=None, chunks=[])
        note(self, self.owner, None)

    def _goes_on(self, selection: Selection, past: int) -> bool:
        before = known(self, self.owner, past)
        return before is not None and before.goes_on(selection)

    def _drop_unfinished(self, length: int) -> None:
        """Forgets what was noted past the end: of tokens that were cropped, or of a pass that failed."""
        self.chunks = trimmed(self.chunks, sum(chunk.size for chunk in self.chunks) - length)

    def recalled(self) -> Filled | None:
        """Its content, if all of it was noted here before an activated LoRA was loaded."""
        keys = keys_of(self)
        if self.made_under is None or keys is None or not self.chunks:
            return None
        chunk = joined(self.chunks)
        return Filled(len(keys), chunk.size, self.made_under, chunk.tokens)

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.chunks = [chunk.changed(change) for chunk in self.chunks]
        self.mask = change(self.mask) if isinstance(self.mask, Tensor) else self.mask
        if (filled := noted(self, self.owner)) is not None:
            note(self, self.owner, filled.changed(change))

    def require_fit(self, owner: int, selection: Selection, past: int) -> None:
        """Raises :class:`UsageError` for a cache that the session of this number, under a selection, cannot go on from.

        A cache that was filled before the invocation of an activated LoRA is as good as one of what acts without it.
        """
        if owner != self.owner:
            remedy = "Make one with this session's new_cache()."
            found = "a cache of another session, whose adapters this one does not know"
            raise UsageError(Problem("cache-mismatch", "past_key_values", found, "a cache of this session", remedy))
        if past and self.made_under not in (None, selection.key) and not self._goes_on(selection, past):
            found = "the cache was filled under other adapters than the active ones"
            remedy = "session.swap(choice, cache) makes it fit."
            raise UsageError(Problem("cache-mismatch", "past_key_values", found, "the same adapters", remedy))


def known(cache: object, session: int, past: int, rows: int | None = None) -> Filled | None:
    """The notes of the ``past`` tokens of a cache, or of more that were taken back since; None if not all of it.

    Rows that somebody has moved have no known tokens any more; an :class:`AdapterCache` follows such moves itself.
    """
    own = cache if isinstance(cache, AdapterCache) and cache.owner == session else None
    found = noted(cache, session) or (None if own is None else own.recalled())
    if found is None or found.size < past or rows not in (None, found.rows):
        return None
    moved = own is None and found.rows > 1 and (found.keys is None or found.keys is not keys_of(cache))
    return replace(found, tokens=None) if moved else found
