"""Scores of a mixture on a few examples: the share that it answers rightly, and the likelihood of the answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from adaptrix.extend import renamed_parameters
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.dispatch.mixtures import Experts, mixing
from adaptrix_transformer2.dispatch.searching import Score, Search, SearchResult, Weights, search
from adaptrix_transformer2.train.answers import chosen, log_probabilities
from adaptrix_transformer2.train.examples import Example
from adaptrix_transformer2.train.setup import ends_of, require_usable

_ROWS = 128  # at once


@renamed_parameters(how="options")
def adapt(
    model: nn.Module,
    parts: Decomposition,
    experts: Experts,
    shots: Sequence[Example],
    *,
    each: bool = False,
    options: Search | None = None,
    ends: Collection[int] | None = None,
) -> SearchResult:
    """The mixture of experts that answers a few examples best; ten are usual.

    ``each``: the weights of every matrix are searched, else one set for all. Raises :class:`AdaptrixError`; the model
    is afterwards as it was.
    """
    ends = ends_of(model, ends)
    require_usable(model, {"shots": shots}, len(ends[:1]))
    with mixing(model, parts, experts) as mixed:

        def objective(weights: Weights) -> Score:
            with mixed.acting(weights):
                return score_on(model, shots, ends)

        return search(objective, len(experts), len(parts.spectra) if each else 1, options)


@torch.no_grad()
def score_on(model: nn.Module, examples: Sequence[Example], ends: Collection[int] | None = None) -> Score:
    """Of the model as it is: the share of examples whose likeliest answer is the response, and the log-likelihood of
    all responses, in nats.

    One pass tells both: where every token is the likeliest after the right ones before it, these are the answer.
    """
    ends, right, likelihood = ends_of(model, ends), 0, 0.0
    for start in range(0, len(examples), _ROWS):
        part = examples[start : start + _ROWS]
        pairs = [(example.prompt, (*example.response, *ends[:1])) for example in part]
        log_p, tokens, mask = log_probabilities(model, pairs)
        right += int(((log_p.argmax(-1) == tokens) | (mask == 0)).all(1).sum())
        likelihood += float((chosen(log_p, tokens) * mask).sum())
    return Score(right / len(examples), likelihood)
