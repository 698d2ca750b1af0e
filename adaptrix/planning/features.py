"""Features that a plan needs of a file format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from adaptrix.architecture import Architecture, Site
from adaptrix.delta import Delta, LowRank, Parametrised, Scale
from adaptrix.feature_names import FEATURES
from adaptrix.planning.plan import Plan

#: finds where a plan has a feature, among all deltas of the plan
Has = Callable[[Plan, Sequence[tuple[Site, Delta]]], Sequence[object]]

#: config keys that make deltas act under a condition, or on other layers than they name
CONDITIONS = ("layer_replication", "alora_invocation_tokens", "arrow_config")


def needed(plan: Plan, among: Collection[str] = FEATURES) -> dict[str, list[str]]:
    """The features that a plan needs, each with the sites or extras that have it; those of what does not act, too.

    ``among``: the features to look for.
    """
    deltas = [*plan.bound.deltas.items(), *plan.overrides.items()]
    found = {
        feature: [*dict.fromkeys(map(str, has(plan, deltas)))] for feature, has in _HAS.items() if feature in among
    }
    return {feature: where for feature, where in found.items() if where}


def _each(has: Callable[[Site, Delta, Architecture], bool]) -> Has:
    """A feature of single deltas."""
    return lambda plan, deltas: [site for site, delta in deltas if has(site, delta, plan.bound.architecture)]


def _unusual(value: Callable[[LowRank], float]) -> Has:
    """A feature of deltas that differ: the sites of those with another value than most."""

    def found(_plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
        values = [(site, value(delta)) for site, delta in deltas if isinstance(delta, LowRank)]
        most = Counter(number for _, number in values).most_common(1)
        return [site for site, number in values if number != most[0][0]]

    return found


def _idle_or_changed(plan: Plan, _deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
    if plan.complete:
        return []
    acting = {site: plan.gains.get(-1 if site.layer is None else site.layer, 1.0) for site in plan.sites}
    return [site for site in plan.bound.deltas if site in plan.overrides or acting.get(site) != 1.0]


def spare(plan: Plan) -> list[str]:
    """The extras that a model with the base's own weights does without: copies of these, and what only training needs.

    A copy of another size than the base's is none: its vocabulary was resized.
    """
    resized = plan.bound.dims.origins.get("vocab") == "tensors"
    kinds = ("training",) if resized else ("training", "base_weight")
    return [key for key, extra in plan.bound.adapter.extras.items() if extra.kind in kinds]


def alpha_of(delta: LowRank) -> float:
    """The alpha that gives a delta its scale as alpha / r."""
    return delta.alpha if not delta.rslora else delta.scale * delta.rank


def _uneven_experts(_plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
    """The sites of experts, where those of one module differ in rank."""
    ranks: dict[Site, set[int]] = {}
    for site, delta in deltas:
        if site.expert is not None:
            ranks.setdefault(replace(site, expert=None), set()).add(delta.rank)
    return [site for site, _ in deltas if len(ranks.get(replace(site, expert=None), ())) > 1]


def _without_magnitude(_plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
    """The sites without a magnitude, where others have one."""
    bare = [site for site, delta in deltas if "magnitude" not in delta.tensors()]
    return bare if len(bare) < len(deltas) else []


def _parametrised(*, described: bool) -> Has:
    """The parametrised deltas of an adapter that is what a PEFT config says of it, or of one that is not."""

    def found(plan: Plan, deltas: Sequence[tuple[Site, Delta]]) -> list[Site]:
        adapter = plan.bound.adapter
        fits = adapter.provenance.format == "peft" and not adapter.altered
        return [site for site, delta in deltas if isinstance(delta, Parametrised) and fits is described]

    return found


def _on_embedding(site: Site, delta: Delta, family: Architecture) -> bool:
    role = family.roles.get(site.role)
    return (isinstance(delta, LowRank) and delta.embedding) or (role is not None and role.orientation == "embedding")


_HAS: Mapping[str, Has] = MappingProxyType(
    {
        "dora": _each(lambda _site, delta, _family: "magnitude" in delta.tensors()),
        "bias": _each(lambda _site, delta, _family: "lora_B.bias" in delta.tensors()),
        "mixed_rank": _unusual(lambda delta: delta.rank),
        "mixed_expert_rank": _uneven_experts,
        "mixed_scale": _unusual(lambda delta: delta.scale),
        "mixed_alpha": _unusual(alpha_of),
        "mixed_dora": _without_magnitude,
        "rslora": _each(lambda _site, delta, _family: isinstance(delta, LowRank) and delta.rslora),
        "embeddings": _each(_on_embedding),
        "head": _each(lambda site, delta, family: site.layer is None and not _on_embedding(site, delta, family)),
        "experts": _each(lambda _site, delta, _family: delta.experts is not None),
        "extras": lambda plan, _deltas: [key for key in plan.bound.adapter.extras if key not in spare(plan)],
        "condition": lambda plan, _deltas: [key for key in CONDITIONS if plan.bound.adapter.provenance.config.get(key)],
        "spectral": _each(lambda _site, delta, _family: delta.kind == "spectral"),
        "parametrised": _parametrised(described=True),
        "reparametrised": _parametrised(described=False),
        "scales": _each(lambda _site, delta, _family: isinstance(delta, Scale)),
        "plan": _idle_or_changed,
    }
)
