"""The guide's calls: ``create_transformer2_model(base_model)(tokens)``, its ``detected_skill`` and ``adaptations``.

Nothing here makes numbers up. Without experts there are eight of z = 1, which change nothing, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from os import PathLike, fspath
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import adaptrix
from adaptrix import Adapter, Problem, UsageError
from adaptrix.extend import load_whole, model_folder, require_in_vocabulary
from adaptrix_transformer2.decomposition import Decomposition, decomposed
from adaptrix_transformer2.dispatch import OTHER, Question, TwoPasses, mixture, question, question_of
from adaptrix_transformer2.experts import expert, untrained, z_of_expert

_CLASSIFIER = "classifier"
Expert = Adapter | str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Transformer2Config:
    """``num_expert_vectors``: experts that are made where none are given; ``adaptation_strength``: how far z goes from
    1 to what it is in an expert, at 0 the base itself; ``adaptation_layers``: those that experts act in, None for all;
    ``expert_vector_dim``: how many numbers of z act in each matrix, those of the largest |s·(z − 1)|, None for all.
    """

    expert_vector_dim: int | None = None
    num_expert_vectors: int = 8
    adaptation_strength: float = 1.0
    adaptation_layers: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Transformer2Output:
    """``logits`` ``[rows, tokens, vocabulary]``; ``detected_skills`` of the rows, ``other`` where it is none of the
    experts'; ``adaptations``: by expert the strength ``[rows]`` that it acted with."""

    logits: Tensor
    detected_skills: tuple[str, ...]
    adaptations: Mapping[str, Tensor]

    @property
    def detected_skill(self) -> str | tuple[str, ...]:
        """The skill of a single row, or those of all rows."""
        return self.detected_skills[0] if len(self.detected_skills) == 1 else self.detected_skills


class Transformer2Model:
    """A base whose rows are each answered by the expert for them. A context manager, which detaches at its end."""

    def __init__(
        self,
        model: Any,
        experts: Mapping[str, Adapter],
        config: Transformer2Config,
        question: Question | None,
        classifier: Adapter | None,
    ) -> None:
        self.model, self.config, self.experts = model, config, tuple(experts)
        own = {} if classifier is None else {_CLASSIFIER: classifier}
        self.session = adaptrix.attach(model, {**experts, **own})
        try:
            named = None if classifier is None else _CLASSIFIER
            self._passes = None if question is None else TwoPasses(model, self.session, question, named)
        except BaseException:
            self.session.detach()
            raise

    @torch.no_grad()
    def __call__(self, tokens: Any, attention_mask: Tensor | None = None) -> Transformer2Output:
        """Reads a batch of prompts ``[rows, tokens]``, or what a tokenizer gives, each row under its expert."""
        inputs = _inputs(tokens, attention_mask, self.model)
        names = self._detected(inputs)
        acting = self._acting(names)
        with self.session.route(acting):
            logits = self.model(**inputs, use_cache=False).logits
        shares = {
            name: torch.tensor([self.config.adaptation_strength * (one == name) for one in acting])
            for name in self.experts
        }
        return Transformer2Output(logits, tuple(name or OTHER for name in names), MappingProxyType(shares))

    @torch.no_grad()
    def generate(self, tokens: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """``model.generate``, each row under its expert; ``streamer`` and the other options are its own.

        The prompt is read once where the experts act in upper layers alone.
        """
        inputs = _inputs(tokens, attention_mask, self.model)
        if self._passes is not None and self.config.adaptation_strength:
            return self._passes.generate(inputs, **options)[0]
        with self.session.use(None):
            found: Tensor = self.model.generate(**inputs, **options)
        return found

    def close(self) -> None:
        """Takes the experts off the base."""
        self.session.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _detected(self, inputs: Mapping[str, Tensor]) -> tuple[str | None, ...]:
        if self._passes is None:
            return (None,) * len(inputs["input_ids"])
        return self._passes.choose(inputs).names

    def _acting(self, names: Sequence[str | None]) -> tuple[str | None, ...]:
        """The expert that acts on each row: at strength 0 the base, whatever was detected."""
        return tuple(names) if self.config.adaptation_strength else (None,) * len(names)


def create_transformer2_model(
    base_model: Any,
    config: Transformer2Config | None = None,
    *,
    experts: Mapping[str, Expert] | None = None,
    classifier: Expert | None = None,
    tokenizer: Any = None,
) -> Transformer2Model:
    """A base with experts: a model, or a folder or name that transformers loads.

    ``experts``: adapters or their files, by skill. A ``classifier`` that :func:`train_classifier` made
    chooses the one for an input, or, with a ``tokenizer`` alone, the base itself. Raises
    :class:`AdaptrixError` with every problem, and then leaves the base as it was.
    """
    config = config or Transformer2Config()
    _require_valid(config)
    model = base_model if isinstance(base_model, nn.Module) else _loaded(base_model)
    parts = decomposed(model)
    _require_layers(config, parts)
    if not experts:
        idle = _idle(parts, config)
        return Transformer2Model(model, idle, config, None, None)
    _require_dispatch(experts, classifier, tokenizer)
    shaped = {name: _shaped(parts, name, _adapter(one), config) for name, one in experts.items()}
    if classifier is None:
        return Transformer2Model(model, shaped, config, question([*experts, OTHER], tokenizer), None)
    sorter = _adapter(classifier)
    return Transformer2Model(model, shaped, config, question_of(sorter), sorter)


def _idle(parts: Decomposition, config: Transformer2Config) -> dict[str, Adapter]:
    """Experts of z = 1, with a warning that they change nothing."""
    said = f"{config.num_expert_vectors} experts of z = 1 change nothing until trained ones are given: experts={{…}}"
    warnings.warn(said, adaptrix.AdaptrixWarning, stacklevel=3)
    return {f"expert-{at}": untrained(parts, f"expert-{at}") for at in range(1, config.num_expert_vectors + 1)}


def _loaded(base: Any) -> Any:
    from transformers import AutoModelForCausalLM

    uri = fspath(base)
    return load_whole(AutoModelForCausalLM, model_folder(uri), uri)


def _adapter(one: Expert) -> Adapter:
    return one if isinstance(one, Adapter) else adaptrix.load(one)


def _shaped(parts: Decomposition, name: str, adapter: Adapter, config: Transformer2Config) -> Adapter:
    """An expert at a strength, in some layers, with some of its numbers.

    What it leaves alone is left out, so that the layers under its first are read once. Raises
    :class:`RefusedError` for an expert of another base.
    """
    whole = z_of_expert(mixture(parts, {name: adapter}, np.ones((1, 1)), name))
    z = {path: _z(parts, path, one, config) for path, one in whole.items()}
    made = expert(parts, name, z, adapter.provenance.config)
    changed = {target: delta for target, delta in made.deltas.items() if (z[str(target)] != 1).any()}
    return replace(made, deltas=MappingProxyType(changed or dict(made.deltas)))


def _z(parts: Decomposition, path: str, z: NDArray[np.float64], config: Transformer2Config) -> NDArray[np.float64]:
    site, layers = parts.identity.architecture.locate(path), config.adaptation_layers
    if layers is not None and (site is None or site.layer not in layers):
        return np.ones_like(z)
    change = config.adaptation_strength * (z - 1)
    if config.expert_vector_dim is not None:
        size = np.abs(change * parts.spectra[path].S.float64())
        change[np.argsort(-size, kind="stable")[config.expert_vector_dim :]] = 0
    return 1 + change


def _inputs(tokens: Any, mask: Tensor | None, model: Any) -> dict[str, Tensor]:
    """Tokens and mask, on the model's device. Raises :class:`AdaptrixError` for what it cannot read."""
    given = dict(tokens) if isinstance(tokens, Mapping) else {"input_ids": tokens}
    ids = given.get("input_ids")
    ids = torch.tensor(ids) if isinstance(ids, list) else ids
    if not isinstance(ids, Tensor) or ids.dim() not in (1, 2) or not ids.numel() or ids.is_floating_point():
        raise UsageError(Problem("input", "tokens", "no tokens", "ids [rows, tokens], or what a tokenizer gives"))
    require_in_vocabulary(model, ids, "tokens")
    ids = ids.view(-1, ids.shape[-1]).to(model.device)
    mask = given.get("attention_mask") if mask is None else mask
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask.to(model.device)}


def _require_dispatch(experts: Mapping[str, Expert], classifier: Expert | None, tokenizer: Any) -> None:
    problems = []
    if classifier is None and tokenizer is None:
        remedy = "classifier=… of train_classifier, or tokenizer=… to ask the base itself"
        problems.append(Problem("classifier", "experts", "nothing decides which expert an input is for", remedy))
    problems += [
        Problem("option", name, "the name is taken", "another name for the expert")
        for name in (OTHER, _CLASSIFIER)
        if name in experts
    ]
    if problems:
        raise UsageError(problems)


def _require_valid(config: Transformer2Config) -> None:
    problems, strength, layers = list[Problem](), config.adaptation_strength, config.adaptation_layers
    for name, value in (
        ("expert_vector_dim", config.expert_vector_dim),
        ("num_expert_vectors", config.num_expert_vectors),
    ):
        if value is not None and (type(value) is not int or value < 1):
            problems.append(Problem("option", name, repr(value)[:80], "a whole number of at least 1"))
    if type(strength) not in (int, float) or not isfinite(strength):
        problems.append(Problem("option", "adaptation_strength", repr(strength)[:80], "a finite number"))
    if layers is not None and (not layers or any(type(one) is not int for one in layers)):
        problems.append(Problem("option", "adaptation_layers", repr(layers)[:80], "layers, or None for all"))
    if problems:
        raise UsageError(problems)


def _require_layers(config: Transformer2Config, parts: Decomposition) -> None:
    """Layers without MLPs would leave experts out without a word."""
    sites = (parts.identity.architecture.locate(path) for path in parts.spectra)
    there = sorted({site.layer for site in sites if site is not None and site.layer is not None})
    if missing := sorted(set(config.adaptation_layers or ()) - set(there)):
        expected = f"some of {', '.join(map(str, there))}"
        raise UsageError(Problem("option", "adaptation_layers", f"no MLP of the base is in {missing}"[:80], expected))
