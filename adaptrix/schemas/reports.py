"""The JSON of each command, beside the ``version`` and the ``command`` that all have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

from adaptrix.schemas.shared import (
    AdapterJSON,
    ArchitectureJSON,
    Number,
    PlanJSON,
    PluginJSON,
    ReportJSON,
    WrittenJSON,
)

_SOURCE = "As it was typed; in Python the name of an adapter that was given itself."
_SOURCES = "Each as it was typed; in Python the name of an adapter that was given itself."
_RETAINED = "Share of ‖ΔW‖² that is kept, from 0 to 1."


class CheckJSON(ReportJSON):
    """All that is wrong with an adapter, or that nothing is."""

    source: Annotated[str, _SOURCE]
    adapter: Annotated[AdapterJSON | None, "Null where the files could not be read at all."]


class DimJSON(TypedDict):
    """A dimension of the base."""

    value: Annotated[int, "In rows, columns, heads or layers."]
    origin: Annotated[str, "`config`: the base's config stated it; `tensors`: their shapes imply it."]


class ProvenanceJSON(TypedDict):
    """The origin of an adapter; for an injection file that of the checkpoint which it was made from."""

    uri: Annotated[str, "Where it was read from."]
    format: Annotated[str, "Such as `peft`."]
    commit: Annotated[str | None, "On the Hub."]
    files: Annotated[dict[str, str], "SHA-256 by name."]
    config: Annotated[dict[str, Any], "The format's own, as it was in the file."]


class RoleJSON(TypedDict):
    """All deltas of one role."""

    role: Annotated[str, "With its part, such as `q` or `qkv.k`."]
    deltas: Annotated[int, "Of the role."]
    layers: Annotated[str, "Such as `0-7,9`; empty outside the layers."]
    shapes: Annotated[list[list[int]], "[out, in] of ΔW; 0 for a side that its tensors do not say, as of (IA)³."]
    ranks: Annotated[list[int], "Every rank, once."]
    scales: Annotated[list[Number], "What B·A is multiplied by."]
    dtypes: Annotated[list[str], "As safetensors names them, such as `F32`."]
    energy: Annotated[Number, "Σ‖ΔW‖²_F."]
    kinds: Annotated[list[str], "Such as `lora`."]


class ExtraJSON(TypedDict):
    """A tensor that is no delta."""

    kind: Annotated[str, "`module`, `bias`, `base_weight`, `token_delta`, `training` or `shared`."]
    dtype: Annotated[str, "As safetensors names it."]
    shape: Annotated[list[int], "As it is stored."]


class InspectJSON(ReportJSON):
    """An adapter laid open."""

    source: Annotated[str, _SOURCE]
    adapter: Annotated[AdapterJSON, "As it was bound."]
    provenance: Annotated[ProvenanceJSON, "Where it came from."]
    dims: Annotated[dict[str, DimJSON], "By name or expression."]
    depths: Annotated[dict[str, int], "Layers of each stack, by the dimension that counts them."]
    plan: Annotated[PlanJSON | None, "That of an injection file; null for others."]
    tensors: Annotated[int, "Of the adapter."]
    bytes: Annotated[int, "Of the tensors."]
    roles: Annotated[list[RoleJSON], "In the family's own order."]
    norms: Annotated[dict[str, dict[str, Number]], "‖ΔW‖_F by role and layer."]
    extras: Annotated[dict[str, ExtraJSON], "By their names in the checkpoint."]


class ConversionJSON(WrittenJSON, ReportJSON):
    """A conversion that was done."""

    source: Annotated[str, _SOURCE]


class UnconvertedJSON(ReportJSON):
    """A source that could not be converted; nothing was written for it."""

    source: Annotated[str, _SOURCE]


class ConvertJSON(ReportJSON):
    """One result for every source. Problems of one source are in its result; those of the run are beside `results`."""

    results: Annotated[list[ConversionJSON | UnconvertedJSON], "One a source, in the order of the sources."]


class MergeJSON(WrittenJSON, ReportJSON):
    """A merge that was done."""

    source: Annotated[str, _SOURCE]
    base: Annotated[str, "As it was typed."]
    changed: Annotated[int, "Tensors of the base that the adapter has changed."]
    agreement: Annotated[AgreementJSON | None, "Null without --verify."]


class AgreementJSON(TypedDict):
    """A merged model beside its base with the adapter attached."""

    largest: Annotated[Number, "The largest difference of a logit."]
    spread: Annotated[Number, "Standard deviation of the logits."]
    top1: Annotated[Number, "Share of tokens for which both would say the same one."]
    kl: Annotated[Number, "KL(attached ‖ merged) a token, in nats."]
    effect: Annotated[Number, "How far the adapter itself moves a logit at most."]
    tokens: Annotated[int, "That were compared."]
    kl_on: Annotated[dict[str, Number], "For an adapter trained on NF4: that KL if it is merged into each base."]


class LossJSON(TypedDict):
    """A delta that was written, and what it lost."""

    rank: Annotated[int, "As it was written."]
    error: Annotated[Number, "‖wanted − got‖ / ‖wanted‖."]
    kept: Annotated[Number, _RETAINED]


class OutcomeJSON(WrittenJSON, ReportJSON):
    """An adapter that was computed and written."""

    sources: Annotated[list[str], _SOURCES]
    base: Annotated[str | None, "As it was typed; null where none was."]
    error: Annotated[Number, "‖wanted − got‖ / ‖wanted‖ over all sites."]
    kept: Annotated[Number, _RETAINED]
    sites: Annotated[dict[str, LossJSON], "By site, such as `layers.0.q`."]


class LikenessJSON(TypedDict):
    """Two ΔW side by side."""

    cosine: Annotated[Number, "Null where one of them is zero."]
    ratio: Annotated[Number, "‖B‖ / ‖A‖; null where A is zero."]
    distance: Annotated[Number, "‖A − B‖ / ‖A‖; null where A is zero."]


class OnlyJSON(TypedDict):
    """Sites that only one of the two has."""

    first: Annotated[list[str], "Of the first adapter."]
    second: Annotated[list[str], "Of the second."]


class DiffJSON(ReportJSON):
    """Two adapters side by side."""

    sources: Annotated[list[str], _SOURCES]
    adapters: Annotated[list[AdapterJSON], "Both, with what acts of them."]
    total: Annotated[LikenessJSON, "Over all sites."]
    roles: Annotated[dict[str, LikenessJSON], "By role and part, such as `q` or `qkv.k`."]
    sites: Annotated[dict[str, LikenessJSON], "By site, such as `layers.0.q`."]
    only: Annotated[OnlyJSON, "Sites where one of the two has no delta."]


class EstimateJSON(TypedDict):
    """A value with its interval of 95 %."""

    value: Annotated[Number, "The mean over the text."]
    low: Annotated[Number, "Null where one window is all there is."]
    high: Annotated[Number, "Null where one window is all there is."]


class RowJSON(TypedDict):
    """A plan beside the whole adapter; `base` is the model without any."""

    policy: Annotated[str, "Such as `all` or `8-23`."]
    layers: Annotated[str, "That act, such as `8-23`."]
    kept: Annotated[int, "How many these are."]
    retained: Annotated[float | None, "Their share of Σ‖ΔW‖²; null where a share says nothing."]
    kl: Annotated[EstimateJSON, "KL(full ‖ plan) a token, in nats."]
    agreement: Annotated[EstimateJSON, "Share of tokens for which both have the same likeliest one."]
    perplexity: Annotated[EstimateJSON, "Of the text."]
    bits_per_byte: Annotated[EstimateJSON | None, "Null where only tokens were given."]
    tokens_per_second: Annotated[Number, "The median window's."]
    reused: Annotated[float | None, "Share of a prompt's prefill that a swap to the plan kept; null for the base."]


class TextJSON(TypedDict):
    """The text of a measurement."""

    file: Annotated[str, "Its name."]
    sha256: Annotated[str, "Of the file."]


class FidelityJSON(ReportJSON):
    """The cost of each plan on a text."""

    source: Annotated[str, _SOURCE]
    base: Annotated[str, "As it was typed; in Python the name of a model that was given itself."]
    adapter: Annotated[AdapterJSON, "As it was bound to the base."]
    text: Annotated[TextJSON | None, "Null where tokens were given, in Python."]
    tokens: Annotated[int, "That were predicted."]
    windows: Annotated[int, "That the text was cut into."]
    window: Annotated[int, "Tokens of one."]
    stride: Annotated[int, "Tokens from one window to the next."]
    seed: Annotated[int, "Of the intervals."]
    dtype: Annotated[str, "Of the base, as torch names it."]
    device: Annotated[str, "As torch names it."]
    depth: Annotated[int, "Layers of the base."]
    rows: Annotated[list[RowJSON], "The whole adapter first, the base last."]


class ArchitecturesJSON(ReportJSON):
    """Every family that is known."""

    architectures: Annotated[list[ArchitectureJSON], "By name."]


class FamilyJSON(ReportJSON):
    """One family."""

    architecture: Annotated[ArchitectureJSON, "The family."]
    toml: Annotated[str, "The family as the registry would have it."]


class PluginsJSON(ReportJSON):
    """Adaptrix itself first, then the plugins."""

    plugins: Annotated[list[PluginJSON], "Loaded or not."]


class ExplanationJSON(TypedDict):
    """A problem code."""

    code: Annotated[str, "The slug."]
    topic: Annotated[str, "The heading that it stands under in `docs/problems.md`."]
    means: Annotated[str, "What was found, in general."]
    why: Annotated[str, "What it comes from, or what it would lead to."]
    do: Annotated[str, "What mends it."]
    example: Annotated[str, "A message with this code."]


class ExplainJSON(ReportJSON):
    """The code that was asked for, or all of them."""

    codes: Annotated[list[ExplanationJSON], "In the order of the table."]


#: what each command prints of its own
REPORTS: Mapping[str, type] = MappingProxyType(
    {
        "convert": ConvertJSON,
        "merge": MergeJSON,
        "fidelity": FidelityJSON,
        "inspect": InspectJSON,
        "check": CheckJSON,
        "combine": OutcomeJSON,
        "resize": OutcomeJSON,
        "diff": DiffJSON,
        "extract": OutcomeJSON,
        "architectures": ArchitecturesJSON,
        "architectures show": FamilyJSON,
        "architectures derive": FamilyJSON,
        "plugins": PluginsJSON,
        "explain": ExplainJSON,
    }
)
