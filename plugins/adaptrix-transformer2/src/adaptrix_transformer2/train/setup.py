"""Preparation and result of a training: the model and examples that it needs, its state file, its expert."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from adaptrix import Adapter
from adaptrix.extend import context_of, refuse, require_causal, require_in_vocabulary
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.experts import expert
from adaptrix_transformer2.train.examples import Example, require_examples
from adaptrix_transformer2.train.run import State
from adaptrix_transformer2.train.run_state import RunState
from adaptrix_transformer2.train.trainable import TrainableExpert


@dataclass(frozen=True, eq=False)
class Trained:
    """An expert, the figures of every step, and how the best scored on the validation examples, if there were any.

    ``started``: the score before the first step. The score is minus the loss a token, or the mean reward.
    """

    adapter: Adapter
    history: tuple[Mapping[str, float], ...]
    score: float | None
    started: float | None


def ends_of(model: Any, ends: Collection[int] | None) -> tuple[int, ...]:
    """The tokens that end a text: those given, else the model's own."""
    if ends is not None:
        return tuple(ends)
    config = getattr(model, "generation_config", None) or model.config
    own = config.eos_token_id
    return () if own is None else tuple(own) if isinstance(own, Sequence) else (own,)


@torch.no_grad()
def require_usable(model: Any, sets: Mapping[str, Sequence[Example]], extra: int) -> None:
    """Raises :class:`AdaptrixError` for a model that is none to train on, and for examples that it cannot read."""
    if not getattr(model, "can_generate", lambda: False)():
        found, kind = "it is of no class that writes text", type(model).__name__
        raise refuse("model-unsupported", kind, found, "a causal language model")
    limit = context_of(model)
    for name, examples in sets.items():
        require_examples(examples, name, limit, extra)
        tokens = [token for example in examples for token in (*example.prompt, *example.response)]
        require_in_vocabulary(model, torch.tensor(tokens), name)
    first = next(iter(sets.values()))[0]
    require_causal(model, torch.tensor((*first.prompt, *first.response)), type(model).__name__)


def saved_at(
    path: Path | None, decomposition: Decomposition, sets: Mapping[str, Sequence[Example]], record: Mapping[str, Any]
) -> RunState | None:
    """The state file of a training, for this base, these examples and these settings alone."""
    if path is None:
        return None
    texts = json.dumps({name: [asdict(example) for example in examples] for name, examples in sets.items()})
    weights = [delta.basis.weight for delta in decomposition.spectra.values()]
    digest = hashlib.sha256((texts + "".join(weights)).encode()).hexdigest()
    return RunState.at(path, {**record, "on": digest})


def result(trainable: TrainableExpert, name: str, state: State, record: Mapping[str, Any]) -> Trained:
    """The result of a training; the settings go into the expert's provenance."""
    with torch.no_grad():
        z = dict(zip(trainable.decomposition.spectra, trainable.z(), strict=True))
    config = {**record, "taken": state.taken} | ({} if state.score is None else {"score": state.score})
    history = tuple(MappingProxyType(figures) for figures in state.history)
    return Trained(expert(trainable.decomposition, name, z, config), history, state.score, state.started)
