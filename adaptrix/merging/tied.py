"""Embeddings and heads that share one tensor, and vocabularies that grew.

Attached, an adapter on the embedding leaves the head alone. Merged into a tensor that is both, it would change
the head too: that is another model, and refused, unless the adapter makes the same change to both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adaptrix.adapter import Extra
from adaptrix.architecture import Site
from adaptrix.base.model_view import ModelView
from adaptrix.base.sites import BaseSites
from adaptrix.binding.identify import tying
from adaptrix.delta import Delta
from adaptrix.errors import Problem
from adaptrix.merging.tensor_change import TensorChange
from adaptrix.planning.plan import Plan
from adaptrix.tensor import FLOATS, Tensor

EMBED, HEAD = Site(None, "embed"), Site(None, "head")
_NO_HEAD = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
UNTIE = (
    "Untie the base first: load it with tie_word_embeddings=False, copy the embedding's weight into the head's,"
    " save_pretrained() it, and merge into that; or leave the embedding out with --layers."
)


def is_tied(config: Mapping[str, Any], sites: BaseSites) -> bool:
    """True where the head reads the embedding's tensor.

    Where the config does not say, the default is the model class's: the two are tied if the files have no head, or
    one that equals the embedding.
    """
    names = config.get("architectures") or [""]
    if "head" not in sites.roles or any(part in str(names[0]) for part in _NO_HEAD):
        return False
    stated = tying(config)
    embeds, heads = sites.weights("embed"), sites.weights("head")
    if stated is not None:
        return stated
    return not heads or any(equal(sites.tensors[a], sites.tensors[b]) for a in embeds for b in heads)


def tied_changes(sites: BaseSites, changes: Mapping[str, TensorChange]) -> dict[str, TensorChange]:
    """The changes, where embedding and head are one: what is done to one tensor is done to its copy."""
    found = dict(changes)
    names = [*sites.weights("embed"), *sites.weights("head")]
    changed = next((changes[name] for name in names if name in changes), None)
    if changed is not None:
        found |= dict.fromkeys(names, changed)
    return found


def tied_problems(plan: Plan, sites: BaseSites) -> Iterator[Problem]:
    """A problem where an adapter changes one of the two and not the other, or both differently."""
    own = next((sites.tensors[name] for name in sites.weights("embed")), None)
    embed, head = (plan.delta(site) if site in plan.sites else None for site in (EMBED, HEAD))
    name = plan.bound.adapter.name
    if not _same_delta(embed, head):
        one = "the embedding" if head is None else "the head" if embed is None else "both, differently,"
        found = f"it changes {one} and the base ties them: merged, the change would be to both"
        yield Problem("tied", f"{name} {EMBED if embed else HEAD}", found, remedy=UNTIE)
    saved = {site: _saved(plan, site, own) for site in (EMBED, HEAD)}
    one_saved, other_saved = saved[EMBED], saved[HEAD]
    if (one_saved is None) != (other_saved is None) or (
        one_saved and other_saved and not equal(one_saved, other_saved)
    ):
        only = (
            "the embedding"
            if other_saved is None
            else "the head"
            if one_saved is None
            else "both, with different numbers,"
        )
        found = f"it has {only} saved whole and the base ties them: merged, it would replace both"
        yield Problem("tied", f"{name} {EMBED if one_saved else HEAD}", found, remedy=UNTIE)


def tied_parameters(plan: Plan, view: ModelView, changes: Mapping[str, TensorChange]) -> Iterator[Problem]:
    """A problem for each site and extra whose weight is another module's as well, in a family without a known head.

    Attached, it would act on one of the modules; merged, on all that share the tensor.
    """
    wanted = {f"{plan.bound.targets[site].path}.weight": str(site) for site in plan.sites}
    wanted |= {view.parameters.get(name, name): name for name, change in changes.items() if not change.empty}
    for name, where in wanted.items():
        others = view.tied_with(name) - {name}
        if others and not others <= wanted.keys():
            found = f"its weight {name} is also {', '.join(sorted(others))}: merged, the change would be to all of them"
            yield Problem("tied", f"{plan.bound.adapter.name} {where}", found, remedy=UNTIE)


def _same_delta(embed: Delta | None, head: Delta | None) -> bool:
    """True where ΔW of the head is the transpose of that of the embedding, or neither has one."""
    return embed is head if embed is None or head is None else embed.is_transpose_of(head)


def _saved(plan: Plan, site: Site, own: Tensor | None) -> Tensor | None:
    """The weight saved whole of a site, unless it is the base's own."""
    for key, extra in plan.bound.adapter.extras.items():
        if (
            _is_weight_of(key, extra, plan, site)
            and plan.active(site)
            and (own is None or not equal(extra.tensor, own))
        ):
            return extra.tensor
    return None


def _is_weight_of(key: str, extra: Extra, plan: Plan, site: Site) -> bool:
    path, _, leaf = key.rpartition(".")
    whole = extra.kind in ("module", "base_weight") and leaf == "weight"
    return whole and plan.bound.architecture.locate(path.removesuffix(".base_layer")) == site


def equal(one: Tensor, other: Tensor) -> bool:
    """True where two tensors hold the same numbers, in the coarser of their dtypes; compared a piece at a time."""
    if one.shape != other.shape or one.dtype not in FLOATS or other.dtype not in FLOATS:
        return False
    dtype = min((one.dtype, other.dtype), key=lambda name: {"F64": 3, "F32": 2}.get(name, 1))
    step = max(1, (1 << 22) // max(1, one.size // max(1, one.shape[0])))
    pieces = ((one.rows(a, min(a + step, one.shape[0])), other.rows(a, min(a + step, one.shape[0])))
              for a in range(0, one.shape[0], step))  # fmt: skip
    return all(np.array_equal(a.cast(dtype).float32(), b.cast(dtype).float32()) for a, b in pieces)


def vocabulary(plan: Plan, sites: BaseSites, changes: Mapping[str, TensorChange]) -> tuple[int | None, list[Problem]]:
    """The number of tokens of embedding and head in the merged model where it changes, and the problems.

    Every tensor with a row for each token must have the new size, else the model could not be loaded.
    """
    names = [*sites.weights("embed"), *sites.weights("head"), *sites.biases_of("head")]
    after = {name: _rows(name, changes, sites) for name in names}
    before = {name: sites.tensors[name].shape[0] for name in names}
    grown = {name for name in names if after[name] != before[name]}
    if not grown:
        return None, []
    sizes = sorted({after[name] for name in names})
    if len(sizes) == 1:
        return sizes[0], []
    kept = next(name for name in names if after[name] != after[min(grown)])
    found = f"the adapter resized {min(grown)} to {after[min(grown)]} tokens, and {kept} has {after[kept]}"
    remedy = "Save the adapter with its embedding and its head (save_embedding_layers=True), or resize the base first."
    return None, [Problem("vocabulary", plan.bound.adapter.name, found, "one size for both", remedy)]


def _rows(name: str, changes: Mapping[str, TensorChange], sites: BaseSites) -> int:
    change = changes.get(name)
    return (change.instead if change and change.instead else sites.tensors[name]).shape[0]
