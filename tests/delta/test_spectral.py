"""Spectral deltas: what they are, what they come to as LoRA, and the files that they are kept in."""

import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.delta import LowRank, Spectral
from adaptrix.errors import RefusedError, UsageError
from adaptrix.formats import safetensors_file
from adaptrix.tensor import Tensor
from tests.helpers.command_line import Place
from tests.helpers.families import architecture, tiny_model
from tests.helpers.peft_models import logits
from tests.helpers.spectral_models import adapter, saved_base, spectral_adapter

pytestmark = pytest.mark.numeric

CASES = {"llama": torch.bfloat16, "gpt2": torch.float32, "phi3": torch.float16}  # GQA; Conv1D, fused; fused


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return SvdCache(tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, cache):
    folder = saved_base(tmp_path_factory.mktemp(request.param) / "base", request.param, CASES[request.param])
    return request.param, folder, spectral_adapter(folder, request.param, cache)


@pytest.fixture(scope="module")
def llama(tmp_path_factory, cache):
    folder = saved_base(tmp_path_factory.mktemp("llama") / "base", "llama", torch.bfloat16)
    return folder, spectral_adapter(folder, "llama", cache)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, cache):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(cache.folder.parent / "own"))


@pytest.fixture
def run(tmp_path, capsys):
    return Place(tmp_path, capsys).run


def a_delta(cache, out, inp, seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    weight = Tensor.of(rng.standard_normal((out, inp)).astype(np.float32))
    z = 1 + spread * rng.standard_normal(min(out, inp))
    return spectral_delta(z, weight, cache), weight


def changed_weights(base, made, architecture):
    """W + ΔW of every module of an adapter as the tuned model has it, reckoned from z alone."""
    tensors = safetensors_file.read(base / "model.safetensors")[0]
    for target, delta in made.deltas.items():
        W = tensors[f"{target.path}.weight"].float64()
        role = architecture.roles[architecture.locate(target.path).role]
        W = W.T if role.orientation == "conv1d" else W
        U, S, Vt = np.linalg.svd(W, full_matrices=False)
        yield target.path, W, (U * (S * delta.z.float64())) @ Vt


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9), st.data())
def test_laws_of_one_delta(cache, out, inp, seed, data):
    delta, weight = a_delta(cache, out, inp, seed)
    U, S, Vt = np.linalg.svd(weight.float64(), full_matrices=False)
    wanted = (U * (S * delta.z.float64())) @ Vt - weight.float64()
    size = np.linalg.norm(wanted)
    np.testing.assert_allclose(delta.dense(), wanted, atol=1e-5 * size)
    assert np.isclose(delta.energy(), size**2, rtol=1e-5)
    exact, error = delta.low_rank()
    assert exact.rank == np.count_nonzero(delta.d) == delta.rank
    np.testing.assert_allclose(exact.dense(), wanted, atol=1e-5 * size)
    assert error.relative < 1e-5
    rank = data.draw(st.integers(1, delta.rank))
    cut, error = delta.low_rank(rank)
    assert cut.rank == rank
    stated = np.sqrt(np.sum(np.sort(delta.d**2)[: delta.rank - rank]))
    assert np.isclose(delta.lost(rank).absolute, stated, rtol=1e-9)
    assert np.isclose(error.absolute, stated, atol=1e-5 * size)
    assert np.isclose(np.linalg.norm(cut.dense() - wanted), stated, atol=1e-5 * size)
    best = np.sqrt(np.sum(np.linalg.svd(wanted, compute_uv=False)[rank:] ** 2))
    assert np.isclose(stated, best, atol=1e-5 * size)  # the largest |d|, not the largest singular values


def test_a_d_of_zero_is_left_out_and_no_change_is_a_lora_of_zeros(cache):
    delta, _weight = a_delta(cache, 7, 5)
    z = delta.z.float64().copy()
    z[1] = z[3] = 1.0
    assert replace(delta, z=Tensor.of(z)).low_rank()[0].rank == 3
    still = replace(delta, z=Tensor.of(np.ones(5)))
    nothing, error = still.low_rank()
    assert (nothing.rank, error.relative, still.energy()) == (1, 0.0, 0.0)
    assert not nothing.dense().any()
    assert isinstance(nothing, LowRank)
    with pytest.raises(RefusedError, match="singular vectors are missing"):
        delta.without_vectors().low_rank()


def test_a_gain_is_on_the_change(cache):
    delta, _ = a_delta(cache, 6, 9)
    delta = replace(delta, z=delta.z.cast("BF16"))
    np.testing.assert_allclose(delta.multiplied(-2.5).dense(), -2.5 * delta.dense(), atol=1e-9)
    assert delta.multiplied(1.0) is delta


def test_the_adapter_is_what_z_says_of_every_layout(case):
    family, base, made = case
    assert {len(set(delta.shape)) for delta in made.deltas.values()} == {1, 2} or family != "gpt2"
    for path, before, after in changed_weights(base, made, architecture(family)):
        delta = next(delta for target, delta in made.deltas.items() if target.path == path)
        size = np.linalg.norm(after - before)
        np.testing.assert_allclose(before + delta.dense(), after, atol=1e-5 * size, err_msg=path)


@pytest.mark.parametrize("vectors", ["include", "omit", None])
def test_files_give_back_every_byte(case, tmp_path, vectors):
    _family, base, made = case
    file = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, vectors=vectors, layers="all")
    read = adaptrix.load(file)
    for target, delta in made.deltas.items():
        same = read.deltas[target]
        assert isinstance(same, Spectral)
        assert (same.basis, same.shape, same.z.tobytes()) == (delta.basis, delta.shape, delta.z.tobytes())
        assert same.S.tobytes() == delta.S.tobytes()
        assert same.resolved == (vectors != "omit")
        assert not same.resolved or same.U.tobytes() == delta.U.tobytes()
    assert adaptrix.convert(file, tmp_path / "b.adaptrix.safetensors").read_bytes() == file.read_bytes()
    assert adaptrix.check(file, base).ok
    tensors = safetensors_file.read(file)[0]
    assert {name.rpartition(".")[2] for name in tensors} == {"spectral_z", "spectral_S"} | (
        set() if vectors == "omit" else {"spectral_U", "spectral_Vt"}
    )


def test_vectors_come_back_from_the_base_byte_for_byte(case, tmp_path):
    _, base, made = case
    whole = adaptrix.convert(made, tmp_path / "whole.adaptrix.safetensors", base=base)
    bare = adaptrix.convert(whole, tmp_path / "bare.adaptrix.safetensors", vectors="omit")
    again = adaptrix.convert(bare, tmp_path / "again.adaptrix.safetensors", base=base, vectors="include")
    assert again.read_bytes() == whole.read_bytes()
    assert bare.stat().st_size < whole.stat().st_size


def test_every_weight_that_z_is_not_of_is_told(case, tmp_path):
    _, base, made = case
    odd = list(made.deltas)[:2]
    scaled = {t: replace(made.deltas[t], S=Tensor.of(made.deltas[t].S.float32() * 2), U=None, Vt=None) for t in odd}
    other = replace(made, deltas={**made.deltas, **scaled})
    bare = adaptrix.convert(other, tmp_path / "bare.adaptrix.safetensors", base=base, vectors="omit")
    with pytest.raises(adaptrix.RefusedError) as error:
        adaptrix.convert(bare, tmp_path / "lora", to="peft", base=base, layers="all")
    assert [problem.code for problem in error.value.problems] == ["svd-mismatch"] * 2


def test_peft_runs_the_lora_as_the_tuned_model(case, tmp_path):
    family, base, made = case
    bare = adaptrix.convert(made, tmp_path / "bare.adaptrix.safetensors", base=base, vectors="omit", layers="all")
    folder = adaptrix.convert(bare, tmp_path / "lora", to="peft", base=base)
    model, tuned = (type(tiny_model(family)).from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    state = tuned.state_dict()
    for path, _, after in changed_weights(base, made, architecture(family)):
        weight = state[f"{path}.weight"]
        weight.copy_(torch.from_numpy(after if weight.shape == after.shape and family != "gpt2" else after.T))
    adapted = peft.PeftModel.from_pretrained(model, str(folder))
    wanted = logits(tuned)
    assert (wanted - logits(type(model).from_pretrained(base, dtype=torch.float32))).abs().max() > 1e-3
    torch.testing.assert_close(logits(adapted), wanted, atol=1e-5, rtol=1e-5)


def test_a_rank_keeps_the_largest_changes_and_states_what_it_loses(llama, tmp_path, run):
    base, made = llama
    file = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, layers="all")
    rank = 12
    worst = max(delta.lost(rank).relative for delta in made.deltas.values())
    assert 0.2 < worst < 0.9
    with pytest.raises(RefusedError, match="rank 12 leaves out") as error:
        adaptrix.convert(file, tmp_path / "small", to="peft", rank=rank)
    enough = int(error.value.problems[0].remedy.split()[1])
    assert max(delta.lost(enough).relative for delta in made.deltas.values()) <= 0.05
    assert max(delta.lost(enough - 1).relative for delta in made.deltas.values()) > 0.05
    assert not (tmp_path / "small").exists()
    code, out, err = run("convert", file, "--to", "peft", "--rank", rank, "--max-error", 0.9, "-o", tmp_path / "small")
    assert (code, f"relative error of ΔW at most {worst:.2e}" in err) == (0, True), err
    assert "% of ‖ΔW‖²" not in out
    small = adaptrix.load(tmp_path / "small")
    for target, delta in made.deltas.items():
        found = small.deltas[target]
        assert found.rank == min(rank, delta.rank)
        gap = np.linalg.norm(found.dense() - delta.dense())
        assert np.isclose(gap, delta.lost(rank).absolute, atol=1e-5 * np.linalg.norm(delta.dense()))


def test_plans_norms_and_inspection_need_no_base(llama, tmp_path, run):
    base, made = llama
    bare = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, vectors="omit", layers="energy:1")
    found = adaptrix.inspect(bare)
    by_role = {summary.role: summary for summary in found.roles}
    assert by_role["k"].shapes == ((20, 24),)
    assert by_role["k"].ranks == (20,)
    assert by_role["k"].kinds == ("spectral",)
    code, out, _ = run("inspect", bare)
    said = "21 deltas of weights in BF16, decomposed by lapack-f64; U and V not in the file"
    assert (code, said in " ".join(out.split())) == (0, True), out
    for site, energy in found.bound.energies.items():
        delta = made.deltas[found.bound.targets[site]]
        assert np.isclose(energy, np.linalg.norm(delta.dense()) ** 2, rtol=1e-5)
    pruned = adaptrix.convert(bare, tmp_path / "p", base=base, to="peft", prune=True)
    assert len(adaptrix.load(pruned).deltas) == len(made.deltas) // 3
    cast = adaptrix.load(adaptrix.convert(bare, tmp_path / "c.adaptrix.safetensors", dtype="bf16", layers="all"))
    assert {(delta.z.dtype, delta.S.dtype) for delta in cast.deltas.values()} == {("BF16", "F32")}


def test_what_takes_low_rank_deltas_says_so(llama, tmp_path):
    base, made = llama
    file = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, layers="middle")
    out = tmp_path / "out.adaptrix.safetensors"
    for attempt in (
        lambda: adaptrix.combine([file, file], out=out),
        lambda: adaptrix.resize(file, 4, out=out),
        lambda: adaptrix.diff(file, file),
        lambda: adaptrix.convert(file, out, redistribute="nearest"),
        lambda: adaptrix.convert(file, out, rank=4),
    ):
        with pytest.raises(RefusedError) as error:
            attempt()
        assert {problem.code for problem in error.value.problems} == {"kind-unsupported"}
        assert not out.exists()


def test_options_that_make_no_sense(llama, tmp_path):
    base, made = llama
    for options in ({"max_error": 0.1}, {"max_error": 2.0, "rank": 3}, {"vectors": "keep"}):
        with pytest.raises(UsageError):
            adaptrix.convert(made, tmp_path / "x", base=base, **options)
    with pytest.raises(UsageError, match="for a peft output"):
        adaptrix.convert(made, tmp_path / "x", to="peft", base=base, vectors="omit")


def test_without_a_base_it_is_said_what_is_missing(llama, tmp_path, run):
    base, made = llama
    bare = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, vectors="omit", layers="all")
    code, _, err = run("convert", bare, "--to", "peft", "-o", tmp_path / "x")
    assert code == 1
    assert "21 spectral deltas without their U and V" in err
    assert "--base MODEL" in err


def test_another_base_is_refused_at_every_weight(llama, tmp_path, cache):
    base, made = llama
    bare = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, vectors="omit", layers="all")
    other = saved_base(tmp_path / "other", "llama", torch.bfloat16, seed=5)
    with pytest.raises(RefusedError) as error:
        adaptrix.convert(bare, tmp_path / "x", to="peft", base=other)
    assert [problem.code for problem in error.value.problems] == ["base-mismatch"] * len(made.deltas)
    rounded = saved_base(tmp_path / "rounded", "llama", torch.float16)
    with pytest.raises(RefusedError, match="another base"):
        adaptrix.convert(bare, tmp_path / "x", to="peft", base=rounded)
    wide = saved_base(tmp_path / "wide", "llama", torch.bfloat16)
    model = type(tiny_model("llama")).from_pretrained(wide, dtype=torch.float32)
    model.save_pretrained(wide)  # the same numbers in a wider dtype
    assert adaptrix.convert(bare, tmp_path / "x", to="peft", base=wide).exists()


def test_a_site_that_has_no_whole_matrix_is_refused(cache, tmp_path):
    base = saved_base(tmp_path / "base", "llama")
    delta, _ = a_delta(cache, 67, 24)
    from adaptrix.adapter import Target

    report = adaptrix.check(adapter({Target("model.embed_tokens"): delta}), base)
    assert "kind-unsupported" in {problem.code for problem in report.problems}
    narrow = adapter({Target("model.layers.0.self_attn.k_proj"): a_delta(cache, 20, 23)[0]})
    assert [p.code for p in adaptrix.check(narrow, base).problems] == ["shape"]


def test_a_manifest_says_whose_vectors_they_are(llama, tmp_path):
    base, made = llama
    file = adaptrix.convert(made, tmp_path / "a.adaptrix.safetensors", base=base, vectors="omit")
    said = json.loads(safetensors_file.read(file)[1]["adaptrix"])["deltas"]["layers.1.k"]
    target = next(target for target in made.deltas if target.path == said["module"])
    assert said == {
        "kind": "spectral",
        "module": "model.layers.1.self_attn.k_proj",
        "rank": 20,
        "scale": 1.0,
        "shape": [20, 24],
        "basis": {"weight": made.deltas[target].basis.weight, "dtype": "BF16", "backend": "lapack-f64"},
        "vectors": False,
    }
