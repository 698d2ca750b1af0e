"""Combination of adapters, with peft's add_weighted_adapter and dense ΔW as judges."""

import json
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.adapter import Target
from adaptrix.algebra import methods
from adaptrix.algebra.combination import combine_adapters
from adaptrix.algebra.methods import METHODS, Term, concatenated, truncated
from adaptrix.algebra.recipe import Recipe
from adaptrix.delta import LowRank
from adaptrix.errors import RefusedError, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import Tensor
from tests.helpers.command_line import placed
from tests.helpers.families import FAMILIES, tiny_model
from tests.helpers.make import adapter, low_rank
from tests.helpers.peft_models import CONFIG, deltas, everything, load, logits, rewrite, save, trained

TARGETS = {
    "llama": (["q_proj", "k_proj", "down_proj"], ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (["c_attn", "c_fc"], ["c_attn", "mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense"], ["query_key_value", "dense_h_to_4h"]),
    "phi3": (["qkv_proj", "gate_up_proj"], ["gate_up_proj", "down_proj"]),
}


def pair(folder, family="llama", first=None, second=None):
    """Two adapters of one model, saved by peft: targets that overlap, unlike alphas, and mixed ranks unless told."""
    one, other = TARGETS[family]
    first = {"target_modules": one} | ({"r": 4, "rank_pattern": {one[0]: 2}} if first is None else first)
    second = {"target_modules": other} | ({"r": 5, "lora_alpha": 11, "use_rslora": True} if second is None else second)
    a, b = save(folder / "a", family, **first), save(folder / "b", family, **second)
    model = trained(load(b.folder, b.build), seed=5)  # unlike those of the first
    model.save_pretrained(b.folder)
    return a, replace(b, deltas=deltas(model))


def weighted(saved, weights):
    """The exact sum of ΔW, by path."""
    total = {}
    for one, weight in zip(saved, weights, strict=True):
        for path, delta in one.deltas.items():
            total[path] = total.get(path, 0) + weight * delta
    return total


def by_peft(a, b, weights, method, **options):
    """What add_weighted_adapter makes of two adapters."""
    model = peft.PeftModel.from_pretrained(a.build(), a.folder, adapter_name="a")
    model.load_adapter(b.folder, adapter_name="b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(["a", "b"], list(weights), "c", combination_type=method, **options)
    return deltas(model, "c")


def combined(a, b, weights, folder, **options):
    """What we make of them: the outcome, and ΔW as peft loads it."""
    done = adaptrix.combine([a.folder, b.folder], weights, folder / "out", "peft", a.base, **options)
    return done, deltas(load(done.path, a.build))


def error(found, wanted):
    gap = sum(np.linalg.norm(found[path] - wanted[path]) ** 2 for path in wanted)
    return (gap / sum(np.linalg.norm(delta) ** 2 for delta in wanted.values())) ** 0.5


@pytest.mark.parametrize("family", TARGETS)
def test_cat_is_the_weighted_sum_of_the_deltas(family, tmp_path):
    a, b = pair(tmp_path, family)
    done, found = combined(a, b, (0.7, -0.3), tmp_path)
    wanted = weighted((a, b), (0.7, -0.3))
    assert found.keys() == wanted.keys() == a.deltas.keys() | b.deltas.keys()
    assert error(found, wanted) < 1e-6
    assert done.error < 1e-7
    assert set(done.ranks.values()) > {5}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_by_way_of_an_injection_file(family, tmp_path):
    """All linear layers and experts, with mixed ranks and alphas; no base is named."""
    keys = everything(family, tiny_model(family))
    a = save(tmp_path / "a", family, **keys)
    b = save(tmp_path / "b", family, **{**keys, "r": 4, "rank_pattern": {}, "alpha_pattern": {}})
    done = adaptrix.combine([a.folder, b.folder], (0.7, -0.3), tmp_path / "x.adaptrix.safetensors")
    back = adaptrix.convert(done.path, tmp_path / "back", to="peft")
    assert error(deltas(load(back, a.build)), weighted((a, b), (0.7, -0.3))) < 1e-6
    whole = adaptrix.combine([a.folder, b.folder], (0.7, -0.3), tmp_path / "y", "peft", method="svd", rank=16)
    assert error(deltas(load(whole.path, a.build)), weighted((a, b), (0.7, -0.3))) < 1e-5
    assert adaptrix.diff(done.path, whole.path).total.cosine == pytest.approx(1.0, abs=1e-9)


def test_the_answers_are_those_of_both_merged(tmp_path):
    a, b = pair(tmp_path)
    done, _ = combined(a, b, (0.7, 0.3), tmp_path)
    model = a.build()
    with torch.no_grad():
        for path, delta in weighted((a, b), (0.7, 0.3)).items():
            model.get_submodule(path).weight += torch.tensor(delta).float()
    torch.testing.assert_close(logits(load(done.path, a.build)), logits(model), rtol=1e-4, atol=1e-5)
    file = adaptrix.combine([a.folder, b.folder], (0.7, 0.3), tmp_path / "x.adaptrix.safetensors", base=a.base)
    base = a.build()
    with adaptrix.attach(base, {"both": file.path}) as session, session.use("both"):
        torch.testing.assert_close(logits(base), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("rank", [None, 3])
def test_svd_is_the_best_of_its_rank(family, rank, tmp_path):
    a, b = pair(tmp_path, family)
    done, found = combined(a, b, (0.6, 0.5), tmp_path, method="svd", rank=rank)
    wanted = weighted((a, b), (0.6, 0.5))
    lost = 0.0
    for path, delta in wanted.items():
        site = next(s for s, t in done.conversion.plan.bound.targets.items() if t.path == path)
        dropped = np.linalg.svd(delta, compute_uv=False)[done.ranks[site] :]
        assert np.linalg.norm(found[path] - delta) == pytest.approx(np.linalg.norm(dropped), rel=1e-4, abs=1e-6)
        lost += np.sum(dropped**2)
    assert done.error == pytest.approx((lost / sum(np.linalg.norm(d) ** 2 for d in wanted.values())) ** 0.5, abs=1e-6)
    assert max(done.ranks.values()) == (rank or 5)


def test_svd_is_that_of_peft(tmp_path):
    a, b = pair(tmp_path, first={"r": 4}, second={"r": 4, "lora_alpha": 9})
    _, found = combined(a, b, (0.6, 0.5), tmp_path, method="svd")
    wanted = by_peft(a, b, (0.6, 0.5), "svd")
    for path, delta in wanted.items():
        np.testing.assert_allclose(found[path], delta, atol=1e-5, err_msg=path)


ONE_RANK = {"first": {"r": 4}, "second": {"r": 4, "lora_alpha": 9}}


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.5, -0.4)])
@pytest.mark.parametrize("method", ["cat", "linear", "ties"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_methods_are_those_of_peft(family, method, weights, tmp_path):
    a, b = pair(tmp_path, family, **ONE_RANK)
    density = {"density": 0.4} if method == "ties" else {}
    done, found = combined(a, b, weights, tmp_path, method=method, **density)
    wanted = by_peft(a, b, weights, method, **density)
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        np.testing.assert_allclose(found[path], delta, atol=1e-5, err_msg=path)
    assert done.error == pytest.approx(error(found, weighted((a, b), weights)), abs=1e-6)
    assert done.error < 1e-6 if method == "cat" else done.error > 0.1


@pytest.mark.parametrize(("method", "theirs"), [("dare", "dare_linear"), ("dare-ties", "dare_ties")])
def test_dare_is_that_of_peft_where_chance_drops_the_same(method, theirs, tmp_path, monkeypatch):
    """The same rule in place of both draws: what is dropped depends on the numbers alone."""

    def torch_rule(tensor, density, rescale):
        assert rescale
        return torch.where(torch.sin(1e4 * tensor.double()) > 0.2, tensor / density, torch.zeros_like(tensor))

    def our_rule(tensor, density, rng):
        return np.where(np.sin(1e4 * tensor) > 0.2, tensor / density, 0.0)

    monkeypatch.setattr("peft.utils.merge_utils.random_pruning", torch_rule)
    monkeypatch.setattr(methods, "dropped", our_rule)
    a, b = pair(tmp_path, **ONE_RANK)
    _, found = combined(a, b, (0.7, 0.3), tmp_path, method=method, density=0.5)
    for path, delta in by_peft(a, b, (0.7, 0.3), theirs, density=0.5).items():
        np.testing.assert_allclose(found[path], delta, atol=1e-5, err_msg=path)


def test_what_dare_drops_is_a_share_and_the_rest_makes_up_for_it():
    tensor = np.ones((200, 300))
    found = methods.dropped(tensor, 0.3, np.random.default_rng(0))
    assert set(np.unique(found)) == {0.0, 1 / 0.3}
    assert found.mean() == pytest.approx(1.0, abs=0.02)


# -- laws, on adapters out of thin air -----------------------------------------------------------------------------

weights = st.floats(-2, 2).filter(lambda weight: abs(weight) > 0.01)


def run(adapters, folder, to="injection", **recipe):
    out = folder / ("out.adaptrix.safetensors" if to == "injection" else "out")
    return combine_adapters(Pipeline(), adapters, Recipe(**recipe), out, Options(to=to, force=True))


def dense(done):
    return {str(site): delta.dense() for site, delta in done.conversion.plan.bound.deltas.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("laws")


@settings(max_examples=25, deadline=None)
@given(weights, weights, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_a_combination_is_linear_in_its_weights(place, one, other, rank, more, seed):
    a, b = adapter(2, seed=seed, rank=rank), adapter(3, seed=seed + 1, rank=more)
    alone = dense(run([a], place)), dense(run([b], place))
    both = dense(run([a, b], place, weights=(one, other)))
    assert len(both) == 9
    for site, delta in both.items():
        parts = [w * half[site] for w, half in zip((one, other), alone, strict=True) if site in half]
        np.testing.assert_allclose(delta, sum(parts), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(weights, weights, st.integers(0, 99))
def test_svd_of_the_full_rank_is_cat(place, one, other, seed):
    pairs = [adapter(2, seed=seed, rank=2), adapter(2, seed=seed + 1, rank=3)]
    exact = dense(run(pairs, place, weights=(one, other)))
    found = run(pairs, place, weights=(one, other), method="svd", rank=5)
    assert found.error < 1e-12
    for site, delta in dense(found).items():
        np.testing.assert_allclose(delta, exact[site], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_error_of_svd_is_the_distance(seed, rank):
    rng = np.random.default_rng(seed)
    terms = [Term(c, rng.standard_normal((r, 7)), rng.standard_normal((9, r))) for c, r in ((0.5, 2), (-1.3, 4))]
    total = sum(term.c * term.B @ term.A for term in terms)
    for merged in (truncated(terms, rank), concatenated(terms)):
        gap = np.linalg.norm(merged.scale * merged.B @ merged.A - total)
        assert gap == pytest.approx(merged.loss.lost**0.5 if merged.loss else 0.0, abs=1e-9)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_one_adapter_of_weight_one_is_itself(dtype, tmp_path):
    rng = np.random.default_rng(3)
    made = adapter(2)
    deltas = {t: low_rank(rng, *d.shape, rank=3, dtype=dtype) for t, d in made.deltas.items()}
    done = run([replace(made, deltas=deltas)], tmp_path, weights=(1.0,))
    bound = done.conversion.plan.bound
    assert done.error == 0.0
    for site, delta in bound.deltas.items():
        own = deltas[bound.targets[site]]
        assert (delta.A.tobytes(), delta.B.tobytes()) == (own.A.tobytes(), own.B.tobytes())
        assert delta.scale == pytest.approx(own.scale)


def test_equal_shares_of_equal_scales_leave_every_number_as_it_was(tmp_path):
    done = run([adapter(2, seed=0), adapter(2, seed=1)], tmp_path)
    assert done.error == 0.0
    assert {delta.scale for delta in done.conversion.plan.bound.deltas.values()} == {0.5}


@pytest.mark.parametrize("method", METHODS)
def test_equal_input_gives_equal_bytes(method, tmp_path):
    pairs = [adapter(2, seed=0), adapter(2, seed=1)]
    first = run(pairs, tmp_path, method=method).path.read_bytes()
    assert run(pairs, tmp_path, method=method).path.read_bytes() == first


def test_another_seed_drops_other_numbers(tmp_path):
    pairs = [adapter(2, seed=0), adapter(2, seed=1)]
    one, other = (run(pairs, tmp_path, method="dare", seed=seed).path.read_bytes() for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_what_rounding_costs_is_in_the_error(dtype, tmp_path):
    pairs = [adapter(2, seed=0), adapter(2, seed=1)]
    wanted = dense(run(pairs, tmp_path, weights=(0.7, 0.3)))
    options = Options(dtype=dtype, force=True)
    for method in ("cat", "svd"):
        recipe = Recipe((0.7, 0.3), method, rank=6 if method == "svd" else None)
        done = combine_adapters(Pipeline(), pairs, recipe, tmp_path / "half.adaptrix.safetensors", options)
        assert done.error == pytest.approx(error(dense(done), wanted), rel=1e-3)
        assert 1e-4 < done.error < 1e-2


# -- spellings, parts, experts, biases -----------------------------------------------------------------------------


def test_prefixes_and_names_do_not_matter(tmp_path):
    a, b = pair(tmp_path)
    wanted = weighted((a, b), (0.5, 0.5))

    def bare(tensors):
        return {name.replace("base_model.model.model.", "base_model.model."): t for name, t in tensors.items()}

    rewrite(b.folder, bare)
    _, found = combined(a, b, (0.5, 0.5), tmp_path)
    assert error(found, wanted) < 1e-6


def test_a_fused_weight_and_its_parts_are_one(tmp_path):
    """The legacy enable_lora changes q and v of GPT-2's c_attn; today's adapters change all of it."""
    whole = save(tmp_path / "whole", "gpt2", target_modules=["c_attn"])
    rng = np.random.default_rng(0)
    parts = {
        Target(t.path, slot, 3): low_rank(rng, 24, 24, 2, alpha=5.0)
        for t in adaptrix.load(whole.folder).deltas
        for slot in (0, 2)
    }
    legacy = replace(adaptrix.load(whole.folder), name="legacy", deltas=parts, altered=True)
    done = adaptrix.combine([whole.folder, legacy], (1, 2), tmp_path / "out", "peft", whole.base)
    for path, delta in deltas(load(done.path, whole.build)).items():
        wanted = whole.deltas[path].copy()
        wanted[:24] += 2 * parts[Target(path, 0, 3)].dense()
        wanted[48:] += 2 * parts[Target(path, 2, 3)].dense()
        np.testing.assert_allclose(delta, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_stacked_experts(method, tmp_path):
    keys = {"target_parameters": ["gate_up_proj", "experts.down_proj"], "target_modules": ["q_proj"]}
    a, b = save(tmp_path / "a", "mixtral", **keys), save(tmp_path / "b", "mixtral", r=2, **keys)
    done, found = combined(a, b, (0.7, 0.3), tmp_path, method=method, rank=None if method == "cat" else 5)
    assert done.error < 1e-6
    assert error(found, weighted((a, b), (0.7, 0.3))) < 1e-6


def test_biases_of_b_add_up_and_embeddings_are_deltas_like_others(tmp_path):
    a = save(tmp_path / "a", "qwen2", target_modules=["q_proj", "v_proj"], lora_bias=True)
    b = save(tmp_path / "b", "qwen2", target_modules=["q_proj", "k_proj"], r=2)
    done, found = combined(a, b, (0.7, 0.3), tmp_path)
    assert error(found, weighted((a, b), (0.7, 0.3))) < 1e-6
    plain = {target.path: delta for target, delta in adaptrix.load(a.folder).deltas.items()}
    for site, delta in done.conversion.plan.bound.deltas.items():
        path = done.conversion.plan.bound.targets[site].path
        wanted = 0.7 * plain[path].scale * plain[path].bias.float64() if path in plain else 0.0
        np.testing.assert_allclose(delta.scale * delta.bias.float64(), wanted, atol=1e-6)
    a = save(tmp_path / "c", "llama", target_modules=["q_proj", "embed_tokens"])
    b = save(tmp_path / "d", "llama", target_modules=["embed_tokens", "k_proj"])
    done, found = combined(a, b, (0.7, 0.3), tmp_path, force=True)
    assert error(found, weighted((a, b), (0.7, 0.3))) < 1e-6


def test_modules_that_no_family_knows(tmp_path):
    rng = np.random.default_rng(0)

    def stranger(*paths):
        return replace(adapter(1), deltas={Target(path): low_rank(rng, 9, 7, 2) for path in paths})

    a, b = stranger("net.blocks.0.wq", "net.blocks.1.wq"), stranger("net.blocks.1.wq", "net.out")
    found = run([a, b], tmp_path, weights=(2.0, -1.0)).conversion.plan.bound
    assert {target.path for target in found.targets.values()} == {"net.blocks.0.wq", "net.blocks.1.wq", "net.out"}
    both = next(delta for site, delta in found.deltas.items() if found.targets[site].path == "net.blocks.1.wq")
    wanted = 2 * a.deltas[Target("net.blocks.1.wq")].dense() - b.deltas[Target("net.blocks.1.wq")].dense()
    np.testing.assert_allclose(both.dense(), wanted, rtol=1e-6)


def test_experts_one_by_one_and_stacked_are_refused_together(tmp_path):
    rng = np.random.default_rng(0)
    kept = "model.layers.0.block_sparse_moe.experts.{}.w2"
    apart = replace(adapter(1), deltas={Target(kept.format(n)): low_rank(rng, 24, 40, 2) for n in range(3)})
    assert len(run([apart, apart], tmp_path).losses) == 3
    A, B = (Tensor.of(rng.standard_normal(shape)) for shape in ((6, 40), (24, 6)))
    stacked = {Target("model.layers.0.mlp.experts.down_proj"): LowRank(A, B, 2.0, experts=3)}
    story = replace(apart.provenance, config={"peft_version": "0.21.0"})
    with pytest.raises(RefusedError, match="one spelling"):
        run([apart, replace(apart, deltas=stacked, provenance=story)], tmp_path)


def test_adapters_without_deltas_are_refused(tmp_path):
    nothing = replace(adapter(1), deltas={})
    with pytest.raises(RefusedError) as error:
        run([adapter(1), nothing], tmp_path)
    assert codes(error) == ["adapter-empty"]
    with pytest.raises(RefusedError):
        adaptrix.resize(nothing, 2, tmp_path / "out")
    with pytest.raises(RefusedError):
        adaptrix.diff(nothing, adapter(1))
    assert list(tmp_path.iterdir()) == []


def test_an_injection_file_counts_as_it_acts(tmp_path):
    a, b = pair(tmp_path)
    file = adaptrix.convert(b.folder, tmp_path / "b.adaptrix.safetensors", base=b.base, layers="1")
    with pytest.warns(adaptrix.AdaptrixWarning, match="taken as it acts"):
        done = adaptrix.combine([a.folder, file], (1, 1), tmp_path / "out", "peft", a.base)
    acting = replace(b, deltas={path: delta for path, delta in b.deltas.items() if ".1." in path})
    assert error(deltas(load(done.path, a.build)), weighted((a, acting), (1, 1))) < 1e-6


def test_the_story_is_in_the_file(tmp_path):
    a, b = pair(tmp_path)
    done = adaptrix.combine([a.folder, b.folder], (0.7, 0.3), tmp_path / "x.adaptrix.safetensors", base=a.base)
    again = adaptrix.load(done.path)
    assert again.provenance.uri == "combine --method cat: 0.7 adapter + 0.3 adapter"
    assert set(again.provenance.files) == {
        f"{n} adapter_{f}" for n in (1, 2) for f in ("config.json", "model.safetensors")
    }
    assert again.recorded.policy == "all"
    assert "relative error" in again.recorded.notes[0]
    assert adaptrix.check(done.path, a.base).ok


# -- what is refused -----------------------------------------------------------------------------------------------


def codes(error):
    return sorted({problem.code for problem in error.value.problems})


def test_no_sum_without_the_base(tmp_path):
    dora = save(tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    head = save(tmp_path / "head", target_modules=["q_proj"], modules_to_save=["norm"])
    with pytest.raises(RefusedError, match="adaptrix merge") as error:
        adaptrix.combine([dora.folder, head.folder], out=tmp_path / "out", to="peft", base=dora.base)
    assert codes(error) == ["extra-unsupported", "kind-unsupported"]
    done, found = combined(head, head, (1, 1), tmp_path, drop_extras=True)
    assert {problem.code for problem in done.notes} == {"summary", "left-out"}
    assert found.keys() == head.deltas.keys()


def test_other_families_and_sizes(tmp_path):
    a = save(tmp_path / "a", "llama", target_modules=["q_proj"])
    b = save(tmp_path / "b", "gpt2", target_modules=["c_attn"])
    with pytest.raises(RefusedError, match="one family"):
        adaptrix.combine([a.folder, b.folder], out=tmp_path / "out")
    small = adapter(2)
    wide = {t: LowRank(Tensor.of(np.ones((3, 20))), Tensor.of(np.ones((24, 3))), 3.0) for t in list(small.deltas)[:1]}
    with pytest.raises(RefusedError) as error:
        run([small, replace(small, deltas=wide)], tmp_path)
    assert codes(error) == ["shape"]
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_size_is_told_even_where_no_site_is_shared(tmp_path):
    made = adapter(2)
    own = {t: d for t, d in made.deltas.items() if "q_proj" in t.path}
    other = {t: low_rank(np.random.default_rng(0), 8, 20, 3) for t in made.deltas if "k_proj" in t.path}
    with pytest.raises(RefusedError) as error:
        run([replace(made, deltas=own), replace(made, deltas=other)], tmp_path)
    assert codes(error) == ["shape"]


def test_nan_is_told_of_the_adapter_that_has_it(tmp_path):
    made = adapter(1)
    target, delta = next(iter(made.deltas.items()))
    bad = {**made.deltas, target: replace(delta, A=Tensor.of(np.full(delta.A.shape, np.nan)))}
    with pytest.raises(RefusedError, match=r"broken, model\.layers\.0") as error:
        run([made, replace(made, name="broken", deltas=bad)], tmp_path)
    assert codes(error) == ["nonfinite"]


def test_numbers_without_room_in_the_dtype(tmp_path):
    loud = {t: replace(d, A=Tensor.of(d.A.float64() * 1e8)) for t, d in adapter(1).deltas.items()}
    made = replace(adapter(1), deltas=loud)
    with pytest.raises(RefusedError, match="wider dtype"):
        combine_adapters(Pipeline(), [made], Recipe(), tmp_path / "x.adaptrix.safetensors", Options(dtype="fp16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"weights": (1.0,)}, "1 weight for 2 adapters"),
        ({"weights": (1.0, 0.0)}, "leave it out"),
        ({"weights": (1.0, float("nan"))}, "finite"),
        ({"method": "average"}, "one of cat, svd"),
        ({"method": "cat", "rank": 3}, "method=.svd."),
        ({"method": "svd", "rank": 0}, "at least 1"),
        ({"method": "ties", "density": 1.5}, "at most 1"),
        ({"method": "cat", "density": 0.5}, "with ties or dare"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_recipes_that_make_no_sense(recipe, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        run([adapter(1), adapter(1)], tmp_path, **recipe)
    assert list(tmp_path.iterdir()) == []


def test_arguments_in_the_wrong_places():
    with pytest.raises(UsageError, match="a list of them"):
        adaptrix.combine("./math", "./code")
    with pytest.raises(UsageError, match="finite numbers"):
        adaptrix.combine(["./math", "./code"], "ab")


def test_unlike_ranks_cannot_be_added_number_by_number(tmp_path):
    with pytest.raises(RefusedError, match="adaptrix resize"):
        run([adapter(1, rank=2), adapter(1, rank=3)], tmp_path, method="linear")


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys, monkeypatch):
    a, b = pair(tmp_path)
    here = placed(tmp_path, capsys, monkeypatch)
    line = ["combine", a.folder, b.folder, "--base", a.base, "--weights", "0.7,0.3"]
    code, out, err = here.run(*line, "--method", "svd", "--rank", "4")
    assert (code, err) == (0, "")
    assert "adapter+adapter.adaptrix.safetensors" in out
    assert "relative error of ΔW" in out
    assert here.run(*line)[0] == 2  # it exists
    code, out, _ = here.run(*line, "--force", "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["error"] < 1e-6) == (0, True, True)
    assert told["sites"]["layers.0.q"]["rank"] == 7
    assert here.run(*line, "--force", "-q") == (0, "", "")
    code, _, err = here.run("combine", a.folder, "--weights", "a,b")
    assert (code, "numbers such as 0.7,0.3" in err) == (2, True)
    code, _, err = here.run("combine", a.folder, b.folder, "--to", "peft", "-o", a.folder, "--force")
    assert code == 2
    assert (a.folder / CONFIG).exists()
    assert here.run("combine")[0] == 2
    code, _, err = here.run("combine", a.folder, tmp_path / "nowhere")
    assert (code, "nowhere" in err) == (2, True)
