"""Choice of the experts for an input: by the model itself, by a classifier, or by a search over mixtures."""

from __future__ import annotations

from adaptrix.extend import renamed_names
from adaptrix_transformer2.dispatch.classifier import OTHER, Question, question, question_of, train_classifier
from adaptrix_transformer2.dispatch.few_shot import adapt, score_on
from adaptrix_transformer2.dispatch.mixtures import mixture
from adaptrix_transformer2.dispatch.searching import Score, Search, SearchResult, search
from adaptrix_transformer2.dispatch.two_passes import Dispatched, TwoPasses

__all__ = [
    "OTHER",
    "Dispatched",
    "Question",
    "Score",
    "Search",
    "SearchResult",
    "TwoPasses",
    "adapt",
    "mixture",
    "question",
    "question_of",
    "score_on",
    "search",
    "train_classifier",
]

__getattr__ = renamed_names(__name__, {"Found": "SearchResult"})
