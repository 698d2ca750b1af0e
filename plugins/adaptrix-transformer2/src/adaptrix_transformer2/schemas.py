"""The shapes of what the plugin's commands print with ``--json``, as those of Adaptrix itself are written down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypedDict

from adaptrix.extend import AdapterJSON, Number, ReportJSON


class ExpertJSON(ReportJSON):
    """An expert that was written."""

    path: Annotated[str, "The injection file."]
    adapter: Annotated[AdapterJSON, "The expert."]
    base: Annotated[str, "As it was typed."]


class TrainJSON(ExpertJSON):
    """A training that is over."""

    source: Annotated[str, "The config, as it was typed."]
    method: Annotated[Literal["sft", "reinforce", "faithful"], "Of the config."]
    numbers: Annotated[int, "Of z, in all matrices."]
    steps: Annotated[int, "That were taken."]
    started: Annotated[Number, "Score of the base on the validation examples; null without any."]
    score: Annotated[Number, "Of the expert: minus the loss a token, or the mean reward; null without examples."]


class ImportJSON(ExpertJSON):
    """An expert of the published code."""

    source: Annotated[str, "As it was typed."]
    numbers: Annotated[int, "Of z, in all matrices."]


class AdaptJSON(ExpertJSON):
    """A mixture of experts that was found and written."""

    sources: Annotated[list[str], "The experts, each as it was typed."]
    weights: Annotated[dict[str, list[Number]], "By expert: one weight for all matrices, or one each."]
    right: Annotated[Number, "Share of the examples that it answers right."]
    likelihood: Annotated[Number, "Of the answers, in nats."]
    evaluations: Annotated[int, "Mixtures that were judged."]


class ExpertScoreJSON(TypedDict):
    """An expert on the examples; `base` is the model without any."""

    name: Annotated[str, "The last part of its path, or all of it where two would be alike."]
    loss: Annotated[Number, "Nats a token of the responses."]
    right: Annotated[Number, "Share of likeliest answers that are right."]


class EvaluateJSON(ReportJSON):
    """Experts beside their base."""

    sources: Annotated[list[str], "The experts, each as it was typed."]
    base: Annotated[str, "As it was typed."]
    examples: Annotated[str, "The file of examples, as it was typed."]
    rows: Annotated[list[ExpertScoreJSON], "The base first."]


#: what each command prints of its own
REPORTS: Mapping[str, type] = MappingProxyType(
    {
        "transformer2 train": TrainJSON,
        "transformer2 import": ImportJSON,
        "transformer2 adapt": AdaptJSON,
        "transformer2 evaluate": EvaluateJSON,
    }
)
