"""Training on answers: the cross-entropy of the answers' own tokens, in the mean over the tokens of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix.extend import Counted, renamed_parameters, uncounted
from adaptrix_transformer2.decomposition import Decomposition, decomposed
from adaptrix_transformer2.train.answers import Tokens, chosen, log_probabilities
from adaptrix_transformer2.train.examples import Example, rows_of
from adaptrix_transformer2.train.run import Figures, Run
from adaptrix_transformer2.train.settings import TrainingSettings, require_valid
from adaptrix_transformer2.train.setup import Trained, ends_of, require_usable, result, saved_at
from adaptrix_transformer2.train.trainable import TrainableExpert, trainable_on

_ROWS = 128  # at once where only the loss is asked for


@renamed_parameters(course="settings")
def sft(
    model: nn.Module,
    examples: Sequence[Example],
    settings: TrainingSettings | None = None,
    *,
    validation: Sequence[Example] = (),
    ends: Collection[int] | None = None,
    decomposition: Decomposition | None = None,
    name: str = "expert",
    state: Path | None = None,
    keep_state: bool = False,
    display: Counted = uncounted,
) -> Trained:
    """An expert that gives the examples' answers. The model is as it was before when this returns or raises.

    ``validation``: examples by whose loss the best numbers are kept; without, the last are. ``ends``: the tokens that
    end a text, by default the model's own; the first of them ends every answer. ``decomposition``: of the model, for
    whoever trains several experts. ``state``: a file in which a training that is stopped keeps how far it came, and
    from which the same call goes on; it goes at the end, unless ``keep_state``: for whoever writes the expert first.
    Raises :class:`AdaptrixError` with every problem.
    """
    settings, ends = settings or TrainingSettings(), ends_of(model, ends)
    require_valid(settings)
    sets = {"examples": examples} | ({"validation": validation} if validation else {})
    require_usable(model, sets, len(ends[:1]))
    parts = decomposition or decomposed(model)
    record = {"method": "sft", **asdict(settings), "ends": ends}
    saved = saved_at(state, parts, sets, record)
    with trainable_on(model, parts, settings.kind, settings.seed) as trainable:
        task = Supervised(model, trainable, tuple(examples), settings, ends)
        done = Run(trainable, settings, task.step, task.scorer(validation) if validation else None).run(saved, display)
        trained = result(trainable, name, done, record)
    if saved is not None and not keep_state:
        saved.remove()
    return trained


def mean_loss(model: nn.Module, examples: Sequence[Example], ends: Collection[int] | None = None) -> float:
    """The cross-entropy of the examples' answers, in nats a token, of the model as it is."""
    ends, total, count = ends_of(model, ends), 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), _ROWS):
            losses, tokens = _losses(model, examples[start : start + _ROWS], ends)
            total += float(losses.double().sum())
            count += tokens
    return total / count


@dataclass(frozen=True, eq=False)
class Supervised:
    """The steps on answers, of an expert or of whatever else can act as one."""

    model: Any
    trainable: TrainableExpert
    examples: tuple[Example, ...]
    settings: TrainingSettings
    ends: tuple[int, ...]

    def step(self, step: int) -> Figures:
        """Leaves the gradient of a batch."""
        batch = [self.examples[at] for at in rows_of(len(self.examples), self.settings.batch, step, self.settings.seed)]
        count, total = sum(len(_whole(example, self.ends)) for example in batch), 0.0
        for start in range(0, len(batch), self.settings.rows):
            with self.trainable.acting():
                loss = _losses(self.model, batch[start : start + self.settings.rows], self.ends)[0].sum() / count
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
            total += float(loss.detach())
        self.trainable.pull()
        return {"loss": total}

    def scorer(self, validation: Sequence[Example]) -> Callable[[], float]:
        """Minus the loss on the validation examples."""

        def score() -> float:
            with self.trainable.acting():
                return -mean_loss(self.model, validation, self.ends)

        return score


def _whole(example: Example, ends: tuple[int, ...]) -> Tokens:
    """An answer with the token that ends it."""
    return (*example.response, *ends[:1])


def _losses(model: Any, batch: Sequence[Example], ends: tuple[int, ...]) -> tuple[Tensor, int]:
    """−log π of every token of the answers ``[rows, positions]``, 0 where there is none, and how many there are."""
    pairs = [(example.prompt, _whole(example, ends)) for example in batch]
    log_p, tokens, mask = log_probabilities(model, pairs)
    return -chosen(log_p, tokens) * mask, sum(len(answer) for _, answer in pairs)
