"""The shapes of what the plugin's commands print with ``--json``, as those of Adaptrix itself are written down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypedDict

from adaptrix.extend import Number, ReportJSON, WrittenJSON


class GeneratedJSON(WrittenJSON, ReportJSON):
    """An adapter that was generated and written."""

    prompt: Annotated[str, "As it was given."]
    encoder: Annotated[str, "That read the prompt."]


class FailedJSON(ReportJSON):
    """A prompt that no adapter could be written for."""

    prompt: Annotated[str, "As it was given."]


class GenerateJSON(ReportJSON):
    """The result of every prompt. Problems of one prompt are in its result; those of the run beside `results`."""

    results: Annotated[list[GeneratedJSON | FailedJSON], "One a prompt, in their order."]


class TrainJSON(ReportJSON):
    """A training that is over."""

    source: Annotated[str, "The config, as it was typed."]
    path: Annotated[str, "The folder that was written."]
    steps: Annotated[int, "In all."]
    resumed: Annotated[int, "Steps that an earlier run had taken."]
    first: Annotated[Number, "Mean loss of the first tenth of the steps."]
    last: Annotated[Number, "Mean loss of the last tenth."]


class ScoreJSON(TypedDict):
    """Scores of the responses to prompts."""

    loss: Annotated[Number, "Nats a token."]
    accuracy: Annotated[Number, "Share of tokens that were the likeliest."]
    exact: Annotated[Number, "Share of examples of which all tokens were."]
    tokens: Annotated[int, "Of the responses."]
    examples: Annotated[int, "Prompts with their responses."]


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
    scores: Annotated[ScoresJSON, "Beside the base and descriptions of other tasks."]


class ModuleJSON(TypedDict):
    """A module that LoRAs are made for."""

    name: Annotated[str, "Such as `q_proj`."]
    shape: Annotated[list[int], "[out, in] of ΔW."]


class ImportJSON(ReportJSON):
    """A hypernetwork that was trained elsewhere."""

    source: Annotated[str, "The checkpoint, as it was typed."]
    path: Annotated[str | None, "The folder that was written; null without -o."]
    variant: Annotated[str, "`S`, `M` or `L`."]
    parameters: Annotated[int, "Numbers of the hypernetwork."]
    modules: Annotated[list[ModuleJSON], "In the order of their type embeddings."]
    layers: Annotated[int, "That LoRAs are made for."]
    rank: Annotated[int, "Of the LoRAs."]
    alpha: Annotated[Number, "Of the LoRAs."]
    rslora: Annotated[bool, "Whether scale is alpha / √rank, and not alpha / rank."]
    scale: Annotated[Number, "What B·A is multiplied by."]
    embedding: Annotated[int, "Numbers of an embedded description."]
    base: Annotated[str | None, "The model it was trained for; null where the checkpoint does not say."]
    encoder: Annotated[str | None, "Null for the base's own states."]
    task: Annotated[Literal["reconstruction", "fine-tuning"], "That it was trained by."]


#: what each command prints of its own
REPORTS: Mapping[str, type] = MappingProxyType(
    {
        "generate": GenerateJSON,
        "text-to-lora train": TrainJSON,
        "text-to-lora evaluate": EvaluateJSON,
        "text-to-lora import": ImportJSON,
    }
)
