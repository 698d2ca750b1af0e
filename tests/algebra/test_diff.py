"""How alike two adapters are, held to dense ΔW."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.algebra.comparison import compare_adapters
from adaptrix.errors import RefusedError
from adaptrix.pipeline import Pipeline
from tests.helpers.command_line import placed
from tests.helpers.make import adapter
from tests.helpers.peft_models import save


def of(one, other):
    return compare_adapters(Pipeline(), one, other)


def dense(made, other):
    """Both, target by target, zero where one has nothing."""
    for target in {**made.deltas, **other.deltas}:
        pair = [it.deltas[target].dense() if target in it.deltas else None for it in (made, other)]
        shape = next(matrix.shape for matrix in pair if matrix is not None)
        yield tuple(np.zeros(shape) if matrix is None else matrix for matrix in pair)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_the_figures_are_those_of_the_dense_deltas(rank, other_rank, seed):
    a, b = adapter(2, seed=seed, rank=rank), adapter(3, seed=seed + 1, rank=other_rank)
    pairs = list(dense(a, b))
    X, Y = (np.concatenate([matrices[i].ravel() for matrices in pairs]) for i in (0, 1))
    total = of(a, b).total
    assert total.cosine == pytest.approx(X @ Y / np.linalg.norm(X) / np.linalg.norm(Y), abs=1e-9)
    assert total.ratio == pytest.approx(np.linalg.norm(Y) / np.linalg.norm(X))
    assert total.distance == pytest.approx(np.linalg.norm(X - Y) / np.linalg.norm(X))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(0, 99), st.floats(-3, 3).filter(lambda x: abs(x) > 0.01))
def test_an_adapter_and_a_multiple_of_it(rank, seed, times):
    made = adapter(2, seed=seed, rank=rank)
    other = replace(made, deltas={t: replace(d, alpha=times * d.alpha) for t, d in made.deltas.items()})
    for found in (of(made, other).total, *of(made, other).sites.values()):
        assert found.cosine == pytest.approx(np.sign(times), abs=1e-12)
        assert found.ratio == pytest.approx(abs(times))
        assert found.distance == pytest.approx(abs(1 - times), abs=1e-7)
    same = of(made, made).total
    assert (same.cosine, same.ratio, same.distance) == (pytest.approx(1.0, abs=1e-15), 1.0, 0.0)


def test_roles_layers_and_what_only_one_has():
    a, b = adapter(2), adapter(3, seed=1)
    b = replace(b, deltas={t: d for t, d in b.deltas.items() if "k_proj" not in t.path})
    found = of(a, b)
    assert list(found.roles) == ["q", "k", "down"]
    assert list(found.cells) == [0, 1, 2]
    assert {str(site) for site in found.only(0)} == {"layers.0.k", "layers.1.k"}
    assert {str(site) for site in found.only(1)} == {"layers.2.q", "layers.2.down"}
    assert np.isnan(found.roles["k"].cosine)
    assert found.roles["k"].distance == 1.0
    assert found.roles["q"].inner == pytest.approx(sum(found.cells[n]["q"].inner for n in range(3)))


@pytest.mark.parametrize("family", ["mixtral", "gpt2"])
def test_experts_and_conv1d(family, tmp_path):
    keys = {"gpt2": {"target_modules": ["c_attn"]}, "mixtral": {"target_parameters": ["gate_up_proj"]}}[family]
    one = save(tmp_path / "one", family, **keys)
    other = save(tmp_path / "other", family, r=2, **keys)
    found = adaptrix.diff(one.folder, other.folder, one.base)
    inner = sum(np.vdot(one.deltas[path], other.deltas[path]) for path in one.deltas)
    assert found.total.inner == pytest.approx(inner, rel=1e-5)


def test_other_families_are_refused(tmp_path):
    one, other = save(tmp_path / "one"), save(tmp_path / "other", "gpt2")
    with pytest.raises(RefusedError, match="one family"):
        adaptrix.diff(one.folder, other.folder)


def test_a_narrow_terminal_cuts_no_figure(tmp_path, capsys, monkeypatch):
    every = save(tmp_path / "one", target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
    here = placed(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("COLUMNS", "64")
    code, out, _ = here.run("diff", every.folder, every.folder, "--base", every.base)
    assert (code, out.count("+1.00 ×1.00"), "…" in out) == (0, 18, False)


def test_the_command(tmp_path, capsys, monkeypatch):
    one = save(tmp_path / "one", target_modules=["q_proj", "k_proj"])
    other = save(tmp_path / "other", target_modules=["q_proj"], use_dora=True)
    here = placed(tmp_path, capsys, monkeypatch)
    code, out, err = here.run("diff", one.folder, other.folder, "--base", one.base)
    assert code == 0
    assert "cosine" in out
    assert "only in" in out
    assert "magnitudes of DoRA" in err
    code, out, _ = here.run("diff", one.folder, other.folder, "--base", one.base, "--json")
    told = json.loads(out)
    assert told["only"] == {"first": ["layers.0.k", "layers.1.k", "layers.2.k"], "second": []}
    assert told["roles"]["k"]["cosine"] is None
    assert told["total"].keys() == {"cosine", "ratio", "distance"}
    assert here.run("diff", one.folder, one.folder, "-q", "--base", one.base) == (0, "", "")
    assert here.run("diff", one.folder)[0] == 2
