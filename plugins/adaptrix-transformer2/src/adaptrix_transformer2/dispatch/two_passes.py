"""Two passes over a prompt: the first tells what it is about, the second answers with the expert for that.

Both read the same tokens, and the question comes after them, so the second pass takes over the first one's keys and
values of every layer under the experts' first (:meth:`Session.swap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from adaptrix import AdapterCache, Problem, RefusedError, Session, UsageError
from adaptrix_transformer2.dispatch.classifier import OTHER, Question, require_known
from adaptrix_transformer2.train.answers import Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Dispatched:
    """``names``: the expert of each row, None for the base; ``probabilities`` ``[rows, classes]`` of the classes.

    ``cache`` holds every token of the prompts but the last, as the chosen experts read them; None where a prompt is
    no longer. ``kept`` layers of it are the first pass's own, ``recomputed`` were run again.
    """

    names: tuple[str | None, ...]
    probabilities: Tensor
    cache: AdapterCache | None
    kept: int
    recomputed: int


class TwoPasses:
    """Chooses among the experts of a session for every row of a batch.

    ``classifier``: the adapter of the session that answers the question; None asks the base itself, by the prompt
    alone. The session's default is the base after every call. Raises :class:`RefusedError` for a question that has
    an expert for an answer that the session does not have, or tokens that the model does not have.
    """

    def __init__(self, model: Any, session: Session, question: Question, classifier: str | None = None) -> None:
        experts = [name for name in session.adapters if name != classifier]
        require_known(question, experts, classifier or "question")
        if classifier is not None and classifier not in session.adapters:
            raise UsageError(Problem("adapter-unknown", classifier, "the session has no such adapter"))
        _require_tokens(question, model.get_input_embeddings().num_embeddings, classifier or "question")
        self.model, self.session, self.question, self.classifier = model, session, question, classifier

    @torch.no_grad()
    def choose(self, inputs: Mapping[str, Tensor]) -> Dispatched:
        """The expert of each row of ``inputs``, which a tokenizer gives, padded on the left if at all."""
        ids, mask = _placed(inputs, self.model.device)
        first = [self.classifier] * len(ids)
        cache = self.session.new_cache() if ids.shape[1] > 1 else None
        with self.session.route(first):
            if cache is not None:
                self._read(ids[:, :-1], mask[:, :-1], cache)
            log_p = self._answered(ids[:, -1:], mask, cache)
        classes = [None if name == OTHER else name for name in self.question.names]
        names = tuple(classes[at] for at in log_p.argmax(1).tolist())
        if cache is None:
            return Dispatched(names, log_p.softmax(1), None, 0, 0)
        if list(names) == first:
            return Dispatched(names, log_p.softmax(1), cache, len(cache.layers), 0)
        done = self.session.swap(names, cache)
        self.session.activate(None)
        return Dispatched(names, log_p.softmax(1), cache, done.kept, done.recomputed)

    def generate(self, inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Dispatched]:
        """The output of ``model.generate`` under the expert of each row, and the experts."""
        chosen = self.choose(inputs)
        ids, mask = _placed(inputs, self.model.device)
        cached = {} if chosen.cache is None else {"past_key_values": chosen.cache}
        with self.session.route(chosen.names):
            return self.model.generate(input_ids=ids, attention_mask=mask, **cached, **options), chosen

    def _read(self, ids: Tensor, mask: Tensor, cache: AdapterCache | None) -> Tensor:
        """Reads tokens after those of a cache, under a mask of both; the logits of each ``[rows, tokens, V]``."""
        given = {}
        if "position_ids" in signature(self.model.forward).parameters:
            given["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        options = {"past_key_values": cache, "use_cache": cache is not None, "return_dict": True}
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, **options, **given).logits
        return logits

    def _answered(self, last: Tensor, mask: Tensor, cache: AdapterCache | None) -> Tensor:
        """Log p of every class after the prompt's ``last`` token and the question, ``[rows, classes]``.

        Names that differ in their last token alone, as those of one token do, are read in one pass.
        """
        read, found = dict[Tokens, Tensor](), list[Tensor]()
        for name in self.question.names.values():
            if name[:-1] not in read:
                read[name[:-1]] = self._continued(last, mask, cache, name[:-1])
            tokens = torch.tensor(name, device=last.device).expand(len(last), -1)
            found.append(read[name[:-1]].gather(2, tokens[..., None])[..., 0].sum(1))
        return torch.stack(found, 1)

    def _continued(self, last: Tensor, mask: Tensor, cache: AdapterCache | None, begun: Tokens) -> Tensor:
        """Log p of whatever follows the question, the tokens of a name and each of those ``[rows, tokens, V]``."""
        more = torch.tensor([*self.question.ask, *begun], dtype=torch.long, device=last.device)
        ids = torch.cat([last, more.expand(len(last), -1)], 1)
        longer = torch.cat([mask, mask.new_ones(len(mask), len(more))], 1)
        logits = self._read(ids, longer, None if cache is None else cache.fork())
        return logits[:, -len(begun) - 1 :].float().log_softmax(-1)


def _require_tokens(question: Question, vocabulary: int, where: str) -> None:
    """A question comes with its classifier, whose file may be anyone's."""
    said = {"the question": question.ask} | {f"the name {name!r}": tokens for name, tokens in question.names.items()}
    problems = [
        Problem(
            "vocabulary", where, f"{what} has tokens up to {max(tokens)}", f"0 to {vocabulary - 1}, as the model has"
        )
        for what, tokens in said.items()
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary
    ]
    if problems:
        raise RefusedError(problems)


def _placed(inputs: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask ``[rows, tokens]``. Raises :class:`UsageError` for padding after a text."""
    ids = inputs["input_ids"].to(device)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.to(device)
    if not bool((mask[:, -1] != 0).all()):
        remedy = 'tokenizer.padding_side = "left" puts the padding before the text.'
        raise UsageError(Problem("input", "attention_mask", "padding at the end of a row", "text there", remedy))
    return ids, mask
