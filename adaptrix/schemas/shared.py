"""The JSON that several commands share: problems, adapters, plans."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from adaptrix.errors import Severity

#: null where it is NaN or infinite, which JSON cannot say
Number = float | None


class ProblemJSON(TypedDict):
    """One thing that is wrong, unusual or worth saying."""

    code: Annotated[
        str,
        "A stable slug for scripts, explained in `docs/problems.md`; the rest but `severity` is prose that may change.",
    ]
    where: Annotated[str, "A file, a tensor, a site or an option."]
    found: Annotated[str, "What is there instead of what should be."]
    expected: Annotated[str, "Empty where nothing else was expected."]
    remedy: Annotated[str, "What to do; empty where there is nothing."]
    severity: Annotated[Severity, "Only an error stops the work."]


class ReportJSON(TypedDict):
    """The keys that every report has."""

    ok: Annotated[bool, "False where one of the problems is an error."]
    problems: Annotated[list[ProblemJSON], "Everything that was said, warnings and notes too."]


class AdapterJSON(TypedDict):
    """An adapter as it was bound to a family."""

    name: Annotated[str, "That of its file or folder, or `--name`."]
    base: Annotated[str | None, "The model it was made for, as it was recorded; null where it was not."]
    family: Annotated[str | None, "The architecture family; null where none is known."]
    dims: Annotated[
        Literal["stated", "inferred"] | None,
        "`stated` by a base's config, which the shapes were checked against, or `inferred` from the tensors; null "
        "where no family is known, and shapes were not checked.",
    ]
    deltas: Annotated[int, "Changes of weights: modules, or parts of a fused one."]
    kinds: Annotated[list[str], "Of the deltas, such as `lora`."]
    extras: Annotated[int, "Tensors that are no deltas: trained heads, biases, tokens."]


class FitJSON(TypedDict):
    """The fit that made a plan's deltas."""

    text: Annotated[str, "SHA-256 of the text."]
    tokens: Annotated[int, "Of the text."]
    steps: Annotated[int, "The most that were allowed."]
    taken: Annotated[int, "Steps until nothing became better."]
    seed: Annotated[int, "Of the training."]
    before: Annotated[Number, "KL(full ‖ plan) a token in nats, held out, with the adapter's own deltas."]
    after: Annotated[Number, "The same with the fitted deltas."]


class PlanJSON(TypedDict):
    """The layers of an adapter that act."""

    policy: Annotated[str, "What was asked for, such as `all` or `8-23`."]
    layers: Annotated[dict[str, list[int]], "By the dimension that counts them, from 0."]
    sites: Annotated[
        int | None, "Deltas that act; null where the file's plan is for another family than the adapter was read as."
    ]
    of: Annotated[int, "Deltas in all."]
    retained: Annotated[float | None, "The share of Σ‖ΔW‖² that acts, from 0 to 1; null where a share says nothing."]
    fit: Annotated[FitJSON | None, "Null where nothing was fitted."]


class WrittenJSON(TypedDict):
    """An output."""

    path: Annotated[str, "The file or folder."]
    tensors: Annotated[int, "In what was written."]
    bytes: Annotated[int, "Of these tensors."]
    adapter: Annotated[AdapterJSON, "That was written or merged."]
    plan: Annotated[PlanJSON, "That it was written or merged with."]


class ArchitectureJSON(TypedDict):
    """A model family."""

    family: Annotated[str, "Its name, as `architectures show` takes it."]
    model_types: Annotated[list[str], "Of config.json."]
    roles: Annotated[list[str], "The weights it has, such as `q` and `down`."]
    origin: Annotated[str, "Where it is from: a file, a distribution, or `derived`."]


class PluginJSON(TypedDict):
    """A plugin, and what became of it."""

    name: Annotated[str, "Of the entry point."]
    distribution: Annotated[str, "That it was installed with; empty for one that is missing."]
    version: Annotated[str, "Of the distribution."]
    state: Annotated[
        Literal["loaded", "failed", "blocked", "missing"],
        "`blocked`: ADAPTRIX_PLUGINS does not name it; `missing`: it names what is not installed.",
    ]
    error: Annotated[str, "Empty where it did not fail."]
    contributes: Annotated[dict[str, list[str]], "Names of its records, by hook."]
