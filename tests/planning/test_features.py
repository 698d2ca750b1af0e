"""Features of plans: found where they are, held by formats that say so, folded where nothing changes, or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptrix.adapter import Adapter, Extra, Provenance, Target
from adaptrix.architecture.registry import builtin_folder, read_architecture
from adaptrix.binding.bind import BoundAdapter, bind
from adaptrix.binding.identify import by_paths
from adaptrix.delta import LowRank, Parametrised, Scale
from adaptrix.delta.spectral import Basis, Spectral
from adaptrix.errors import UsageError
from adaptrix.feature_names import FEATURES, LORA
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.planning.features import needed
from adaptrix.planning.folding import FOLDED, folded
from adaptrix.planning.plan import Plan, make_plan
from adaptrix.planning.recorded import plan_of
from adaptrix.plugins.catalog import Catalog
from adaptrix.records import Format
from adaptrix.tensor import FLOATS, Tensor
from tests.helpers.format_stand_ins import plain
from tests.helpers.make import LLAMA, adapter, low_rank

MIXTRAL = read_architecture(builtin_folder() / "mixtral.toml")
Q = "model.layers.0.self_attn.q_proj"


def _vector(count: int) -> Tensor:
    return Tensor.of(np.linspace(0.5, 1.5, count, dtype=np.float32))


def _changed(**changes: object) -> Adapter:
    """An adapter whose first delta is another."""
    made = adapter(2)
    (first, delta), *others = made.deltas.items()
    return replace(made, deltas={first: replace(delta, **changes), **dict(others)})  # type: ignore[type-var]


def _more(path: str, delta: LowRank | Spectral) -> Adapter:
    made = adapter(2)
    return replace(made, deltas={**made.deltas, Target(path): delta})


def _of_rank(rank: int, out: int = 24, inp: int = 18, alpha: float = 3.0) -> LowRank:
    return low_rank(np.random.default_rng(rank), out, inp, rank, alpha)


def _spectral() -> Spectral:
    left, right = (np.linalg.qr(np.random.default_rng(i).standard_normal((n, 18)))[0] for i, n in ((1, 24), (2, 18)))
    U, Vt = (Tensor.of(np.ascontiguousarray(side.astype(np.float32))) for side in (left, right.T))
    S = Tensor.of(np.linspace(2.0, 1.0, 18, dtype=np.float32))
    return Spectral(_vector(18), S, Basis("0" * 64, "F32", "lapack-f32"), (24, 18), U, Vt)


def _bound(made: Adapter) -> BoundAdapter:
    return bind(made, by_paths(made, [LLAMA, MIXTRAL]))


STACKED = LowRank(*(_of_rank(8, 36, 18).tensors()[name] for name in ("lora_A", "lora_B")), 4.0, experts=4)
HEAD = Extra("module", Tensor.of(np.ones((7, 18), np.float32)))
PLANS: dict[str, Callable[[], Plan]] = {
    "dora": lambda: make_plan(_bound(_lengthened("magnitude")), "all"),
    "bias": lambda: make_plan(_bound(_lengthened("bias")), "all"),
    "mixed_rank": lambda: make_plan(_bound(_changed(**_factors(_of_rank(5, alpha=5.0)))), "all"),
    "mixed_expert_rank": lambda: make_plan(_bound(_uneven_experts()), "all"),
    "mixed_scale": lambda: make_plan(_bound(_changed(alpha=6.0)), "all"),
    "mixed_alpha": lambda: make_plan(_bound(_changed(alpha=6.0)), "all"),
    "mixed_dora": lambda: make_plan(_bound(_changed(magnitude=_vector(24))), "all"),
    "rslora": lambda: make_plan(_bound(_every(alpha=5.0, rslora=True)), "all"),
    "embeddings": lambda: make_plan(_bound(_more("model.embed_tokens", _embedding())), "all"),
    "head": lambda: make_plan(_bound(_more("lm_head", _of_rank(3, 40, 18))), "all"),
    "experts": lambda: make_plan(_bound(_alone("model.layers.0.mlp.experts.down_proj", STACKED)), "all"),
    "extras": lambda: make_plan(_bound(_with_head()), "all"),
    "condition": lambda: make_plan(_bound(_activated()), "all"),
    "spectral": lambda: make_plan(_bound(_more("model.layers.5.self_attn.q_proj", _spectral())), "all"),
    "parametrised": lambda: make_plan(
        _bound(replace(_loha(), provenance=_by_peft(peft_type="LOHA", r=2, alpha=4))), "all"
    ),
    "reparametrised": lambda: make_plan(_bound(_loha()), "all"),
    "scales": lambda: make_plan(_bound(_scales()), "all"),
    "plan": lambda: make_plan(_bound(adapter(4)), "middle"),
}


#: a feature -> those that come with it: scale is alpha / rank
IMPLIED = {
    "mixed_rank": {"mixed_alpha"},
    "mixed_expert_rank": {"mixed_rank", "mixed_alpha"},
    "mixed_scale": {"mixed_alpha"},
    "mixed_alpha": {"mixed_scale"},
    "mixed_dora": {"dora"},
}


def _uneven_experts() -> Adapter:
    path = "model.layers.0.block_sparse_moe.experts.{}.w2"
    deltas = {Target(path.format(expert)): _of_rank(rank, 18, 30, float(rank)) for expert, rank in enumerate((2, 4))}
    return replace(adapter(2), deltas=deltas)


def _scales() -> Adapter:
    made = adapter(2)
    vectors = {target: _vector(delta.shape[0]) for target, delta in made.deltas.items()}
    vectors = {target: Tensor(one.dtype, (one.size, 1), one.data) for target, one in vectors.items()}
    return replace(made, deltas={target: Scale(one, inputs=False) for target, one in vectors.items()})


def _loha() -> Adapter:
    names = {"hada_w1_a": (24, 2), "hada_w1_b": (2, 18), "hada_w2_a": (24, 2), "hada_w2_b": (2, 18)}
    parts = {name: Tensor.of(np.full(shape, 0.5, np.float32)) for name, shape in names.items()}
    made = adapter(2)
    return replace(made, deltas=dict.fromkeys(made.deltas, Parametrised("loha", MappingProxyType(parts), 2.0)))


def _factors(delta: LowRank) -> dict[str, object]:
    return {"A": delta.A, "B": delta.B, "alpha": delta.alpha}


def _every(**changes: object) -> Adapter:
    made = adapter(2)
    return replace(made, deltas={target: replace(delta, **changes) for target, delta in made.deltas.items()})  # type: ignore[type-var]


def _by_peft(**config: object) -> Provenance:
    return Provenance("memory", "peft", config={"peft_type": "LORA", **config})


def _with_head() -> Adapter:
    made = replace(adapter(2), provenance=_by_peft(modules_to_save=["score"]), altered=True)
    return replace(made, extras={"score.weight": HEAD})


def _activated() -> Adapter:
    return replace(adapter(2), provenance=_by_peft(alora_invocation_tokens=[5, 6]), altered=True)


def _lengthened(field: str) -> Adapter:
    """An adapter whose deltas all have a vector as long as they have rows."""
    made = adapter(2)
    deltas = {target: replace(delta, **{field: _vector(delta.shape[0])}) for target, delta in made.deltas.items()}  # type: ignore[type-var]
    return replace(made, deltas=deltas)


def _alone(path: str, delta: LowRank) -> Adapter:
    """An adapter of one delta, by a PEFT whose layout of stacked experts is known."""
    return replace(adapter(2), deltas={Target(path): delta}, provenance=_by_peft(peft_version="0.19.1"), altered=True)


def _embedding() -> LowRank:
    return replace(_of_rank(3, 18, 40), embedding=True)


def _publish(monkeypatch: pytest.MonkeyPatch, form: Format, plan: Plan, out: Path, **options: str) -> BoundAdapter:
    """What is read from the file or folder that a plan was written to, bound."""
    monkeypatch.setattr(Catalog, "formats", (form,))
    pipeline = Pipeline(Catalog())
    done = pipeline.publish(plan, str(out), Options(to=form.name, **options))  # type: ignore[arg-type]
    return pipeline.bind(pipeline.read(str(done.path)))


def _equal(one: BoundAdapter, other: BoundAdapter) -> None:
    assert one.deltas.keys() == other.deltas.keys()
    for site, delta in one.deltas.items():
        if isinstance(delta, Scale):
            np.testing.assert_array_equal(delta.change, other.deltas[site].compared()[0])
            continue
        ours, theirs = delta.low_rank()[0].dense(), other.deltas[site].low_rank()[0].dense()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(ours).max())


def test_every_feature_has_an_example() -> None:
    assert PLANS.keys() == FEATURES.keys()


@pytest.mark.parametrize("feature", FEATURES)
def test_a_plan_needs_the_feature_that_it_has(feature: str) -> None:
    assert needed(make_plan(_bound(adapter(2)), "all")) == {}
    found = needed(PLANS[feature]())
    assert found.keys() == {feature, *IMPLIED.get(feature, ())}
    assert all(found.values())
    assert needed(PLANS[feature](), FEATURES.keys() - {feature, *IMPLIED.get(feature, ())}) == {}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", ["injection", "peft"])
def test_the_formats_hold_what_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, feature: str
) -> None:
    form = Catalog().writable[name]
    if feature not in form.carries:
        pytest.skip(f"{name} does not carry {feature}")
    plan = PLANS[feature]()
    read = _publish(monkeypatch, form, plan, tmp_path / f"x{form.suffix}")
    assert feature in needed(plan_of(read, None))
    _equal(plan.bound, read)
    assert plan.bound.adapter.extras.keys() == {key.removeprefix("base_model.model.") for key in read.adapter.extras}


@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_not_carried_is_folded_or_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, feature: str
) -> None:
    plan, form = PLANS[feature](), plain(())
    if feature in FOLDED:
        read = _publish(monkeypatch, form, plan, tmp_path / "x.plain.safetensors")
        assert needed(make_plan(read, "all")) == {}
        _equal(plan.bound, read)
        return
    with pytest.raises(UsageError) as caught:
        _publish(monkeypatch, form, plan, tmp_path / "x.plain.safetensors")
    problems = caught.value.problems
    assert len(problems) == 1 + len(IMPLIED.get(feature, ()))
    assert {(problem.code, problem.where) for problem in problems} == {("format-loss", "to plain")}
    assert all(problem.remedy for problem in problems)
    assert feature == "plan" or any(FEATURES[feature] in problem.found for problem in problems)
    assert list(tmp_path.iterdir()) == []


def test_copies_of_the_bases_own_weights_are_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Catalog, "formats", (plain(()),))
    copy = Extra("base_weight", Tensor.of(np.ones((40, 18), np.float32)))
    made = replace(adapter(2), extras={"lm_head.base_layer.weight": copy})
    done = Pipeline(Catalog()).publish(make_plan(_bound(made), "all"), str(tmp_path / "x"), Options(to="plain"))
    (warning,) = [one for one in done.problems if one.severity == "warning"]
    assert "lm_head.base_layer.weight" in warning.found


def test_everything_that_is_refused_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = replace(_changed(magnitude=_vector(24), bias=_vector(24), alpha=1.0), extras={"score.weight": HEAD})
    with pytest.raises(UsageError) as caught:
        _publish(monkeypatch, plain(()), make_plan(_bound(made), "0"), tmp_path / "x.plain.safetensors")
    assert {problem.expected.rpartition(" ")[2] for problem in caught.value.problems} == {
        *("", "dora", "mixed_dora", "bias", "extras"),
    }


def test_what_was_folded_is_said_and_nothing_else_is_touched() -> None:
    plan = PLANS["mixed_rank"]()
    made = folded(plan, ())
    (note,) = made.notes
    assert (note.code, note.severity) == ("summary", "note")
    assert "ranks are padded with zeros" in note.found
    assert "scales" not in note.found
    assert folded(plan, LORA) is plan
    assert folded(made, ()) is made


def test_overrides_are_folded_too() -> None:
    plan = PLANS["mixed_rank"]()
    site = next(iter(plan.bound.deltas))
    changed = replace(plan, overrides=MappingProxyType({site: _of_rank(7)}))
    made = folded(changed, {"mixed_scale", "mixed_alpha"})
    assert {delta.rank for delta in (*made.bound.deltas.values(), *made.overrides.values())} == {7}
    assert np.array_equal(made.overrides[site].low_rank()[0].dense(), _of_rank(7).dense())


def test_a_fold_may_bring_what_the_next_one_folds() -> None:
    """Padding the experts of a layer to one rank makes their alphas differ."""
    path = "model.layers.0.block_sparse_moe.experts.{}.w2"
    deltas = {Target(path.format(at)): _of_rank(rank, 18, 30, 16.0) for at, rank in enumerate((4, 8, 8))}
    plan = make_plan(_bound(replace(adapter(2), deltas=deltas)), "all")
    made = folded(plan, FEATURES.keys() - {"mixed_expert_rank", "mixed_alpha"})
    assert needed(made, ["mixed_expert_rank", "mixed_alpha"]) == {}
    _equal(plan.bound, made.bound)


def test_one_alpha_is_one_whatever_the_rank() -> None:
    """1/49 · 49 is not 1 in floating point."""
    plan = make_plan(_bound(_changed(**_factors(_of_rank(49, alpha=3.0)))), "all")
    assert needed(plan, ["mixed_alpha"]) == {}


def test_stacked_experts_are_padded_each_in_its_place() -> None:
    made = _alone("model.layers.0.mlp.experts.down_proj", STACKED)
    wider = Target("model.layers.1.mlp.experts.down_proj")
    deltas = {**made.deltas, wider: replace(STACKED, **_factors(_of_rank(20, 36, 18)))}  # type: ignore[arg-type]
    plan = make_plan(_bound(replace(made, deltas=deltas)), "all")
    padded = folded(plan, {"experts", "mixed_scale", "mixed_alpha"})
    assert {delta.rank for delta in padded.bound.deltas.values()} == {5}
    _equal(plan.bound, padded.bound)


@given(
    st.sampled_from(FLOATS),
    st.sampled_from([1.0, 2.0, 0.5, 3.0, 1.5, 0.75, 1 / 3, 0.1, 2.0**-130, 2.0**120, -2.0]),
    st.sampled_from([1.0, 4.0, 3.0, 0.1, 2 / 3]),
    st.integers(0, 50),
)
def test_a_scale_goes_into_b_exactly_or_rounded_and_said(dtype: str, one: float, other: float, seed: int) -> None:
    deltas = {
        Target(f"model.layers.{layer}.self_attn.q_proj"): low_rank(
            np.random.default_rng(seed + layer), 24, 18, 2, 2.0 * scale, dtype
        )
        for layer, scale in enumerate((one, other))
    }
    plan = make_plan(_bound(replace(adapter(2), deltas=deltas)), "all")
    made = folded(plan, ())
    assert bool(needed(made, ["mixed_scale"])) is (made is plan and one != other)
    rounded = any("rounding" in note.found for note in made.notes)
    assert not rounded or dtype in ("F32", "F64")
    allowed = Fraction(2, 1 << (24 if dtype == "F32" else 53)) if rounded else 0
    for site, delta in plan.bound.deltas.items():
        for before, after in zip(_products(delta), _products(made.bound.deltas[site]), strict=True):
            assert abs(before - after) <= allowed * abs(before)


def _products(delta: object) -> list[Fraction]:
    """Scale times every number of B, with no rounding."""
    assert isinstance(delta, LowRank)
    return [Fraction(delta.scale) * Fraction(number) for number in delta.B.float64().ravel().tolist()]


@pytest.mark.parametrize(
    ("scale", "dtype", "folds"),
    [(4.0, "BF16", True), (1.5, "BF16", False), (1.5, "F32", True), (1 / 3, "F64", True), (2.0**-140, "F32", False)],
)
def test_what_would_round_too_much_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scale: float, dtype: str, folds: bool
) -> None:
    deltas = {Target(Q): low_rank(np.random.default_rng(1), 24, 18, 2, 2.0, dtype)}
    deltas[Target(Q.replace("0", "1"))] = low_rank(np.random.default_rng(2), 24, 18, 2, 2 * scale, dtype)
    plan = make_plan(_bound(replace(adapter(2), deltas=deltas)), "all")
    if folds:
        _equal(plan.bound, _publish(monkeypatch, plain(()), plan, tmp_path / "x.plain.safetensors"))
        return
    with pytest.raises(UsageError, match=r"deltas of different scales.*rounds nothing"):
        _publish(monkeypatch, plain(()), plan, tmp_path / "x.plain.safetensors")


def test_a_wider_dtype_makes_room_for_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalog, "formats", (plain(()),))
    narrow = [low_rank(np.random.default_rng(i), 24, 18, 2, 2 * scale, "BF16") for i, scale in enumerate((1.0, 1.5))]
    made = replace(adapter(2), deltas={Target(Q.replace("0", str(i))): delta for i, delta in enumerate(narrow)})
    with pytest.raises(UsageError, match='dtype="fp32"'):
        Pipeline(Catalog()).convert(made, tmp_path / "x.plain.safetensors", Options(to="plain"))
    done = Pipeline(Catalog()).convert(made, tmp_path / "x.plain.safetensors", Options(to="plain", dtype="fp32"))
    _equal(_bound(made), Pipeline(Catalog()).bind(Pipeline(Catalog()).read(str(done.path))))


# -- how formats stated it before ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "more"),
    [
        ({}, set()),
        ({"keeps_plan": True}, {"plan"}),
        ({"keeps_plan": True, "keeps_spectral": True}, {"plan", "spectral"}),
        ({"keeps_plan": False, "keeps_spectral": True}, {"spectral"}),
    ],
)
def test_old_options_of_a_format_still_work_with_a_warning(stated: dict[str, bool], more: Collection[str]) -> None:
    whole = plain(())
    with pytest.warns(DeprecationWarning, match="format old states no carries"):
        form = Format("old", whole.patterns, whole.detect, whole.read, whole.write, **stated)
    assert form.carries == LORA | set(more)
    assert (form.keeps_plan, form.keeps_spectral) == ("plan" in more, "spectral" in more)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace(form, name="other").carries == form.carries


def test_a_format_that_is_only_read_states_nothing() -> None:
    whole = plain(())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Format("old", whole.patterns, whole.detect, whole.read).carries == frozenset()
