"""``adaptrix text-to-lora evaluate``: a checkpoint's scores on a file of tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptrix.extend import Pipeline, base_model_at, number, placement
from adaptrix_text_to_lora.checkpoint import read_checkpoint
from adaptrix_text_to_lora.encoders import Pooling, require_width
from adaptrix_text_to_lora.encoding import named_encoder
from adaptrix_text_to_lora.training.files import read_tasks
from adaptrix_text_to_lora.training.published import CheckpointRecord
from adaptrix_text_to_lora.training.scoring import Evaluation, Score, evaluate
from adaptrix_text_to_lora.training.tokens import prepared, require_readable

if TYPE_CHECKING:
    from adaptrix_text_to_lora.schemas import EvaluateJSON, ScoreJSON


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Scores, of which checkpoint on which base and file, and the names of its tasks."""

    checkpoint: str
    base: str
    tasks: str
    names: tuple[str, ...]
    evaluation: Evaluation

    def as_dict(self) -> EvaluateJSON:
        """All of it, for JSON."""
        found = self.evaluation
        return {
            "source": self.checkpoint,
            "ok": True,
            "problems": [],
            "base": self.base,
            "tasks": self.tasks,
            "scores": {
                "generated": _score(found.generated),
                "shuffled": None if found.shuffled is None else _score(found.shuffled),
                "base": _score(found.base),
                "by_task": {name: _score(one) for name, one in zip(self.names, found.by_task, strict=True)},
            },
        }


def _score(found: Score) -> ScoreJSON:
    return {
        "loss": number(found.loss),
        "accuracy": number(found.accuracy),
        "exact": number(found.exact),
        "tokens": found.tokens,
        "examples": found.examples,
    }


def evaluate_file(
    path: Path,
    *,
    checkpoint: str,
    base: str,
    display: Callable[[str, int], AbstractContextManager[Callable[[int], object]]],
    encoder: str | None = None,
    pooling: Pooling | None = None,
    length: int = 512,
    device: str | None = None,
    dtype: str | None = None,
) -> EvaluationReport:
    """Scores a checkpoint on a JSONL file of tasks. Raises :class:`AdaptrixError` with all that is wrong."""
    texts, read = read_tasks(path), read_checkpoint(checkpoint)
    base_model = base_model_at(base, Pipeline(), placement(device, dtype))
    network, settings = read.hypernetwork, read.settings
    named = named_encoder(encoder or settings.encoder or "base", network.shape.embedding, base, pooling, checkpoint)
    require_width(named.width, network.shape.embedding, named.name)
    tasks = prepared(texts, base_model.tokenizer(), named, length)
    scale = CheckpointRecord(settings.alpha, settings.rslora).scale(network.shape.rank)
    with base_model.model() as model, display("evaluating", len(tasks)) as advance:
        require_readable(model, tasks, base)
        found = evaluate(network.to(next(model.parameters()).device), model, tasks, scale, advance)
    return EvaluationReport(checkpoint, base, str(path), tuple(text.name for text in texts), found)
