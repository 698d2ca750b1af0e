"""The shapes of what the plugin's commands print with ``--json``, as those of Adaptrix itself are written down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypedDict

from adaptrix.schemas.shared import Number, ReportJSON, WrittenJSON


class GeneratedJSON(WrittenJSON, ReportJSON):
    """An adapter that was generated and written."""

    prompt: str
    encoder: Annotated[str, "That read the prompt."]


class FailedJSON(ReportJSON):
    """A prompt that no adapter could be written for."""

    prompt: str


class GenerateJSON(ReportJSON):
    """The result of every prompt. Problems of one prompt are in its result; those of the run beside `results`."""

    results: Annotated[list[GeneratedJSON | FailedJSON], "One a prompt, in their order."]


class TrainJSON(ReportJSON):
    """A training that is over."""

    source: Annotated[str, "The config, as it was typed."]
    path: Annotated[str, "The folder that was written."]
    steps: int
    resumed: Annotated[int, "Steps that an earlier run had taken."]
    first: Annotated[Number, "Mean loss of the first tenth of the steps."]
    last: Annotated[Number, "Mean loss of the last tenth."]


class ScoreJSON(TypedDict):
    """How well prompts were answered."""

    loss: Annotated[Number, "Nats a token."]
    accuracy: Annotated[Number, "Share of tokens that were the likeliest."]
    exact: Annotated[Number, "Share of examples of which all tokens were."]
    tokens: int
    examples: int


class ScoresJSON(TypedDict):
    """The scores over all tasks."""

    generated: Annotated[ScoreJSON, "Every task with its own descriptions."]
    shuffled: Annotated[ScoreJSON | None, "With those of another task; null for a single one."]
    base: Annotated[ScoreJSON, "The base alone."]
    by_task: Annotated[dict[str, ScoreJSON], "Each task with its own descriptions."]


class EvaluateJSON(ReportJSON):
    """A hypernetwork, judged on tasks."""

    source: Annotated[str, "The checkpoint, as it was typed."]
    base: Annotated[str, "As it was typed."]
    tasks: Annotated[str, "The file of tasks, as it was typed."]
    scores: ScoresJSON


class ModuleJSON(TypedDict):
    """A module that LoRAs are made for."""

    name: str
    shape: Annotated[list[int], "[out, in] of ΔW."]


class ImportJSON(ReportJSON):
    """A hypernetwork that was trained elsewhere."""

    source: Annotated[str, "The checkpoint, as it was typed."]
    path: Annotated[str | None, "The folder that was written; null without -o."]
    variant: str
    parameters: int
    modules: Annotated[list[ModuleJSON], "In the order of their type embeddings."]
    layers: int
    rank: int
    alpha: Number
    rslora: bool
    scale: Annotated[Number, "What B·A is multiplied by."]
    embedding: Annotated[int, "Numbers of an embedded description."]
    base: Annotated[str | None, "The model it was trained for; null where the checkpoint does not say."]
    encoder: Annotated[str | None, "Null for the base's own states."]
    task: Literal["reconstruction", "fine-tuning"]


#: what each command prints of its own
REPORTS: Mapping[str, type] = MappingProxyType(
    {
        "generate": GenerateJSON,
        "text-to-lora train": TrainJSON,
        "text-to-lora evaluate": EvaluateJSON,
        "text-to-lora import": ImportJSON,
    }
)
