"""The columns where activated LoRAs act in a pass: found once, from its token ids and what its cache holds.

One law says what may go on from a cache: it must hold what reading all tokens in one pass would have put there. So the
invocation tokens of a row begin after what is cached, or an earlier pass has found them where they still are. What
``generate`` appends is read as peft reads it: the prompt's invocation alone counts.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin

from adaptrix.errors import Problem, RefusedError, UsageError, refuse
from adaptrix.runtime.cache import AdapterCache, known
from adaptrix.runtime.filled import NEVER, Filled, keys_of, length_of, note
from adaptrix.runtime.gate import Columns
from adaptrix.runtime.packing import packed
from adaptrix.runtime.rows import repeats_of
from adaptrix.runtime.selection import Selection, Term

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
_PREFILL = getattr(getattr(GenerationMixin, "_prefill", None), "__code__", None)  # transformers 5 has it
_CACHES = ("past_key_values", "cache_params")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A pass as activated LoRAs see it: the columns of each, and what its cache holds afterwards, if that is known."""

    session: int
    cache: object
    columns: tuple[tuple[Term, Columns], ...] = ()
    after: Filled | None = None

    def ends(self, output: object) -> None:
        """Notes on the caches of a pass that has ended what they hold."""
        for cache in filter(_notable, (self.cache, *_caches(output))):
            if self.after is None or length_of(cache) == self.after.size:
                note(cache, self.session, None if self.after is None else replace(self.after, keys=keys_of(cache)))


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """The tokens of a pass ``[rows, size]``, and what was before them; ``tokens`` are all of them, None if unknown.

    ``cropped``: tokens were taken back since the last pass.
    """

    rows: int
    size: int
    before: Filled
    tokens: Tensor | None
    cropped: bool

    @property
    def past(self) -> int:
        return self.before.size


def read(session: int, selection: Selection, given: Mapping[str, Any]) -> Reading:
    """The reading of a pass with these arguments.

    Raises :class:`RefusedError` and :class:`UsageError` where it is not known in which columns an adapter acts.
    """
    cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
    step = _step(session, selection, given, cache)
    if not selection.activated:
        goes_on = step is not None and step.before.goes_on(selection)
        return Reading(session, cache, (), _after(step, {}) if step is not None and goes_on else None)
    _require_ids(given)
    if step is None:
        found = "the cache was filled by passes that this session did not see, or that were interrupted"
        raise _unfit(found, "calls of the attached model alone", "Read the prompt again with a new cache.")
    if not step.before.goes_on(selection):
        found = "the cache was filled under other adapters than the active ones"
        raise _unfit(found, "the same adapters", "Read the prompt again with a new cache.")
    starts = {term.key: _starts(step, term) for term in selection.activated}
    kept = given.get("logits_to_keep")
    columns = tuple((term, _columns(step, starts[term.key], kept)) for term in selection.activated)
    return Reading(session, cache, columns, _after(step, starts))


def stands(cache: AdapterCache, selection: Selection) -> Filled | None:
    """The content of a cache, if reading all of it again under a selection would make the same; None otherwise."""
    before = known(cache, cache.owner, cache.get_seq_length())
    if before is None or before.tokens is None or not before.goes_on(selection):
        return None
    for term in selection.activated:
        never = (NEVER,) * before.rows
        if _last(before.tokens, term.gate.tokens, _uses(term, before.rows)) != before.starts.get(term.key, never):
            return None
    return before


def _step(session: int, selection: Selection, given: Mapping[str, Any], cache: object) -> _Step | None:
    """The step of a pass; None where it is not known what is in its cache."""
    ids, past = given.get("input_ids"), length_of(cache)
    shown = ids if isinstance(ids, Tensor) else given.get("inputs_embeds")
    if not isinstance(shown, Tensor) or shown.dim() < 2 or past is None:
        return None
    rows, size = shown.shape[:2]
    found = known(cache, session, past, rows) if past else Filled(rows, 0, selection.ground, None)
    if found is None:
        return None
    before = found if found.size == past else found.cropped(past)
    ids = ids if isinstance(ids, Tensor) and not packed(given) else None
    return _Step(rows, size, before, _all_tokens(before, ids), found.size != past)


def _all_tokens(before: Filled, ids: Tensor | None) -> Tensor | None:
    """The ids of what was before and of a pass; None where some are not known."""
    if ids is None or not before.size:
        return ids
    return None if before.tokens is None else torch.cat([before.tokens.to(ids.device), ids], dim=1)


def _after(step: _Step, starts: Mapping[tuple[int, float], tuple[int, ...]]) -> Filled:
    return replace(step.before, size=step.past + step.size, tokens=step.tokens, starts=starts, keys=None)


def _columns(step: _Step, starts: Sequence[int], kept: object) -> Columns:
    own = tuple(min(max(0, start - step.past), step.size) for start in starts)
    return Columns(own, step.size, kept if isinstance(kept, int) and kept else None)


def _starts(step: _Step, term: Term) -> tuple[int, ...]:
    """The column of all tokens from which an adapter acts, one a row. Raises :class:`UsageError` where the cache holds
    something else than it would have put there."""
    have = step.before.starts.get(term.key)
    if have is not None and step.size == 1 and not step.cropped and _appended():
        return have
    if step.tokens is None:
        found = "the ids of the tokens before are not known: some were embeddings, or rows of the cache were moved"
        raise _unfit(found, "token ids in every pass", "Read the prompt again, with session.new_cache().")
    have = have or (NEVER,) * step.rows
    want = _last(step.tokens, term.gate.tokens, _uses(term, step.rows))
    if problems := list(_contradictions(have, want, step.past)):
        raise UsageError(problems)
    return want


def _uses(term: Term, rows: int) -> list[bool]:
    """The rows of a batch that use an adapter; beams lie together with their row."""
    if term.rows is None:
        return [True] * rows
    beams = repeats_of(rows, len(term.rows))
    return [used for used in term.rows for _ in range(beams)]


def _last(tokens: Tensor, sequence: Sequence[int], uses: Sequence[bool]) -> tuple[int, ...]:
    """The column where a sequence of ids begins for the last time, in the rows that use it."""
    last = last_start(tokens, sequence)
    return tuple(start if used else NEVER for start, used in zip(last, uses, strict=True))


def last_start(tokens: Tensor, sequence: Sequence[int]) -> tuple[int, ...]:
    """The column where a sequence of ids begins for the last time, one a row of ``tokens`` ``[rows, n]``."""
    if tokens.shape[1] < len(sequence):
        return (NEVER,) * len(tokens)
    windows = tokens.unfold(1, len(sequence), 1)
    hits = (windows == torch.tensor(sequence, device=tokens.device)).all(-1)
    last = torch.where(hits, torch.arange(hits.shape[1], device=hits.device), -1).amax(1).tolist()
    return tuple(NEVER if start < 0 else start for start in last)


def _contradictions(have: Sequence[int], want: Sequence[int], past: int) -> Iterator[Problem]:
    """A problem for each row whose cache of ``past`` tokens is not what reading everything at once would have made."""
    for row, (known_start, start) in enumerate(zip(have, want, strict=True)):
        if known_start == start or (known_start == NEVER and start >= past):
            continue
        first = min(known_start, start)
        found = (
            f"its invocation tokens begin at token {start}, and the cache holds {past} tokens without the adapter"
            if known_start == NEVER
            else f"the cache holds tokens from {known_start} on under an invocation that is not the last one any more"
        )
        remedy = f"cache.crop({first - past}) takes tokens back to before it; give the model all from there on at once."
        yield Problem("cache-mismatch", f"past_key_values row {row}", found, "invocation after what is cached", remedy)


def _require_ids(given: Mapping[str, Any]) -> None:
    """Raises :class:`RefusedError` for a pass whose tokens do not say where an adapter acts."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        found = f"token ids of shape {list(ids.shape)}" if isinstance(ids, Tensor) else "no token ids, but embeddings"
        remedy = "Give the model input_ids, or run the base with session.use(None)."
        raise refuse("conditional", "input_ids", found, "[rows, tokens], where the invocation is looked for", remedy)
    if packed(given):
        found = "positions begin anew in the middle of a row: several texts are packed into it"
        raise refuse("conditional", "position_ids", found, "one text a row", "Give every text a row of its own.")


def _unfit(found: str, expected: str, remedy: str) -> RefusedError:
    return refuse("cache-mismatch", "past_key_values", found, expected, remedy)


def _appended() -> bool:
    """True inside transformers' generate, once it has read the prompt.

    Nothing else tells a token that was generated from one of a prompt that is read token by token.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _GENERATE:
        if frame.f_code is _PREFILL:
            return False
        frame = frame.f_back
    return frame is not None


def _notable(cache: object) -> bool:
    """True for what a note can be left on, which neither None nor a tuple is."""
    return hasattr(cache, "__dict__")


def _caches(output: object) -> Iterator[object]:
    """The caches among the outputs of a model."""
    found = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else ()
    return (one for one in found if isinstance(one, Cache))
