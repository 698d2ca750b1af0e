"""Classification of a prompt: a question after it, names that answer it, and an expert that learns to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from adaptrix import Adapter, Problem, RefusedError, UsageError
from adaptrix.extend import refuse, renamed_parameters
from adaptrix_transformer2.decomposition import Decomposition, decomposed
from adaptrix_transformer2.train.answers import Tokens
from adaptrix_transformer2.train.examples import Example
from adaptrix_transformer2.train.settings import TrainingSettings
from adaptrix_transformer2.train.setup import Trained
from adaptrix_transformer2.train.supervised import sft

OTHER = "other"  # the class of what no expert is for
_KEY = "question"  # in the provenance of a classifier


@dataclass(frozen=True, slots=True)
class Question:
    """``ask``: the tokens that follow a prompt; ``names``: by class, the tokens that say it.

    A class is the name of an expert, or :data:`OTHER`, which stands for the base. Raises :class:`UsageError` where two
    classes cannot be told apart.
    """

    ask: Tokens
    names: Mapping[str, Tokens]

    def __post_init__(self) -> None:
        said = list(self.names.values())
        problems = [
            Problem("classifier", name, "no tokens say it") for name, tokens in self.names.items() if not tokens
        ]
        problems += [
            Problem("classifier", name, "another class begins with the same tokens", "names that end, or differ before")
            for name, tokens in self.names.items()
            if sum(other[: len(tokens)] == tokens for other in said) > 1
        ]
        if not self.names:
            problems.append(Problem("classifier", "question", "it has no classes", "the names of experts"))
        if problems:
            raise UsageError(problems)


def question(names: Sequence[str], tokenizer: Any, ask: str | None = None) -> Question:
    """The question of a text, by default one that lists the names, which answer it just as they stand after a blank."""
    ask = ask or f"\n\nWhich of {', '.join(names)} is this? It is"
    say = {name: tuple(tokenizer(f" {name}\n", add_special_tokens=False)["input_ids"]) for name in names}
    return Question(tuple(tokenizer(ask, add_special_tokens=False)["input_ids"]), MappingProxyType(say))


@renamed_parameters(asked="question", course="settings")
def train_classifier(
    model: nn.Module,
    prompts: Mapping[str, Sequence[Tokens]],
    question: Question,
    settings: TrainingSettings | None = None,
    *,
    validation: Mapping[str, Sequence[Tokens]] = MappingProxyType({}),
    decomposition: Decomposition | None = None,
    name: str = "classifier",
    **options: Any,
) -> Trained:
    """An expert that answers the question after the prompts of each class. ``options`` are those of :func:`sft`.

    The question is kept with it: see :func:`question_of`. Raises :class:`AdaptrixError`.
    """
    sets = [_examples(prompts, question), _examples(validation, question)]
    parts = decomposition or decomposed(model)
    trained = sft(model, sets[0], settings, validation=sets[1], ends=(), decomposition=parts, name=name, **options)
    stored = {"ask": list(question.ask), "names": {name: list(tokens) for name, tokens in question.names.items()}}
    origin = trained.adapter.provenance
    provenance = replace(origin, config=MappingProxyType({**origin.config, _KEY: stored}))
    return replace(trained, adapter=replace(trained.adapter, provenance=provenance))


def question_of(classifier: Adapter) -> Question:
    """The question that a classifier was trained to answer. Raises :class:`RefusedError` for any other adapter."""
    try:
        stored = classifier.provenance.config[_KEY]
        names = {str(name): tuple(map(int, tokens)) for name, tokens in stored["names"].items()}
        return Question(tuple(map(int, stored["ask"])), MappingProxyType(names))
    except (KeyError, TypeError, ValueError, AttributeError):
        found = "it says of no question that it answers it"
        raise refuse("classifier", classifier.name, found, "an expert that train_classifier made") from None


def require_known(question: Question, experts: Sequence[str], where: str) -> None:
    """Raises :class:`RefusedError` with every class that is neither an expert nor :data:`OTHER`."""
    unknown = [name for name in question.names if name != OTHER and name not in experts]
    if unknown:
        expected = ", ".join([*experts, OTHER])
        raise RefusedError(
            Problem("adapter-unknown", where, f"it names {name!r}, and there is no such expert", expected)
            for name in unknown
        )


def _examples(prompts: Mapping[str, Sequence[Tokens]], question: Question) -> list[Example]:
    """Prompts with the question, and their class as the answer. Raises :class:`UsageError` for unknown classes."""
    if strange := [name for name in prompts if name not in question.names]:
        raise UsageError(Problem("classifier", name, "the question has no such answer") for name in strange)
    return [
        Example((*prompt, *question.ask), question.names[name])
        for name, several in prompts.items()
        for prompt in several
    ]
