"""Adapters at other ranks: peft loads them, the SVD of the dense ΔW says what is best."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptrix
from adaptrix.adapter import Target
from adaptrix.algebra.compression import Size, resize_adapter
from adaptrix.delta import LowRank, straightened
from adaptrix.errors import RefusedError, UsageError
from adaptrix.options import Options
from adaptrix.pipeline import Pipeline
from adaptrix.tensor import Tensor
from tests.helpers.command_line import placed
from tests.helpers.make import adapter
from tests.helpers.peft_models import assert_same_deltas, deltas, load, logits, save

pytestmark = pytest.mark.numeric

KINDS = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj", "embed_tokens"], "rank_pattern": {"v_proj": 5}, "r": 4}),
    "rslora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "r": 5}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "modules_to_save": ["ln_f"], "r": 5}),
    "lora_bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True, "r": 4}),
    "experts": ("mixtral", {"target_parameters": ["gate_up_proj", "experts.down_proj"], "target_modules": [], "r": 4}),
}


def best(delta, rank):
    """The best approximation of a matrix, or of each of several."""
    U, s, Vt = np.linalg.svd(delta, full_matrices=False)
    return (U[..., :rank] * s[..., None, :rank]) @ Vt[..., :rank, :]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_smaller_rank_is_the_best_there_is(name, rank, tmp_path):
    family, keys = KINDS[name]
    saved = save(tmp_path, family, **keys)
    done = adaptrix.resize(saved.folder, rank, tmp_path / "out", "peft", saved.base)
    found = deltas(load(done.path, saved.build))
    assert_same_deltas(found, {path: best(delta, rank) for path, delta in saved.deltas.items()})
    gap = sum(np.linalg.norm(found[path] - delta) ** 2 for path, delta in saved.deltas.items())
    size = sum(np.linalg.norm(delta) ** 2 for delta in saved.deltas.values())
    assert done.error == pytest.approx((gap / size) ** 0.5, rel=1e-4)
    assert done.kept == pytest.approx(1 - gap / size, rel=1e-4)
    assert set(done.ranks.values()) == {rank}


@pytest.mark.parametrize("name", [*KINDS, "dora"])
def test_a_larger_rank_changes_nothing(name, tmp_path):
    family, keys = KINDS.get(name, ("llama", {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True}))
    saved = save(tmp_path, family, **keys)
    done = adaptrix.resize(saved.folder, 9, tmp_path / "out", "peft", saved.base)
    model = load(done.path, saved.build)
    assert_same_deltas(deltas(model), saved.deltas)
    torch.testing.assert_close(logits(model), saved.logits, rtol=1e-5, atol=1e-6)
    assert done.error == 0.0
    assert set(done.ranks.values()) == {9}
    assert "summary" in {problem.code for problem in done.notes}


def test_extras_and_the_bias_of_a_small_adapter_answer_as_before(tmp_path):
    """At a rank that loses nothing peft's answers are the same, trained modules and biases included."""
    for name in ("Conv1D", "lora_bias"):
        family, keys = KINDS[name]
        saved = save(tmp_path / name, family, **keys)
        wide = adaptrix.resize(saved.folder, 8, tmp_path / name / "wide", "peft", saved.base)
        done = adaptrix.resize(wide.path, 5, tmp_path / name / "out", "peft", saved.base)
        assert done.error < 1e-6
        torch.testing.assert_close(logits(load(done.path, saved.build)), saved.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 6])
def test_stacked_experts_that_describe_the_transpose(rank, tmp_path):
    """As peft before 0.19 wrote them."""
    rng = np.random.default_rng(0)
    A, B = (Tensor.of(rng.standard_normal(shape)) for shape in ((3 * 4, 24), (40, 4 * 3)))
    delta = LowRank(A, B, 5.0, experts=3, transposed=True)
    made = replace(adapter(1), deltas={Target("model.layers.0.mlp.experts.down_proj"): delta})
    done = run(made, tmp_path, Size(rank))
    (found,) = done.conversion.plan.bound.deltas.values()
    assert found.shape == (24, 40)
    np.testing.assert_allclose(found.dense(), best(delta.dense(), rank), atol=1e-9)
    story = replace(made.provenance, config={"peft_version": "0.19.1"})
    straight = replace(made, deltas={target: straightened(found) for target in made.deltas}, provenance=story)
    both = adaptrix.combine([made, straight], (1, 1), tmp_path / "both.adaptrix.safetensors")
    (summed,) = both.conversion.plan.bound.deltas.values()
    np.testing.assert_allclose(summed.dense(), delta.dense() + found.dense(), atol=1e-9)
    again = adaptrix.load(both.path)
    np.testing.assert_allclose(next(iter(again.deltas.values())).dense(), summed.dense(), atol=1e-12)


def run(subject, folder, size, to="out", **options):
    out = folder / f"{to}.adaptrix.safetensors"
    return resize_adapter(Pipeline(), subject, size, out, Options(force=True, **options))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("laws")


def tensors(done):
    bound = done.conversion.plan.bound
    return {str(site): (delta.A.tobytes(), delta.B.tobytes()) for site, delta in bound.deltas.items()}


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_resizing_twice_is_resizing_once(place, rank, own, seed):
    once = run(adapter(2, seed=seed, rank=own), place, Size(rank))
    again = run(adaptrix.load(once.path), place, Size(rank), to="again")
    assert tensors(once) == tensors(again)
    assert again.error == 0.0


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 1.0), st.integers(0, 99))
def test_energy_gives_the_smallest_rank_that_has_it(place, share, seed):
    made = adapter(2, seed=seed, rank=6)
    done = run(made, place, Size(energy=share))
    for site, rank in done.ranks.items():
        squares = np.linalg.svd(made.deltas[done.conversion.plan.bound.targets[site]].dense(), compute_uv=False) ** 2
        kept = np.cumsum(squares) / squares.sum()
        assert kept[rank - 1] >= share - 1e-9
        assert rank == 1 or kept[rank - 2] < share
        assert done.losses[site].kept == pytest.approx(kept[rank - 1], abs=1e-6)


def test_the_same_rank_leaves_every_byte(tmp_path):
    made = adapter(2, rank=3)
    done = run(made, tmp_path, Size(3))
    deltas = done.conversion.plan.bound.deltas.values()
    assert [(d.A.tobytes(), d.B.tobytes()) for d in deltas] == [
        (d.A.tobytes(), d.B.tobytes()) for d in (made.deltas[t] for t in done.conversion.plan.bound.targets.values())
    ]


def test_numbers_whose_products_leave_every_range(tmp_path):
    loud = {t: replace(d, A=Tensor.of(d.A.float64() * 1e200), B=Tensor.of(d.B.float64() * 1e200))
            for t, d in adapter(1).deltas.items()}  # fmt: skip
    made = replace(adapter(1), deltas=loud)
    for act in (
        lambda: run(made, tmp_path, Size(2)),
        lambda: adaptrix.combine([made, made], out=tmp_path / "out", method="svd"),
    ):
        with pytest.raises(RefusedError):
            act()
    assert list(tmp_path.iterdir()) == []


def test_rounding_is_in_the_error(tmp_path):
    done = run(adapter(2, rank=3), tmp_path, Size(3), dtype="bf16")
    assert 1e-4 < done.error < 1e-2
    assert {delta.A.dtype for delta in done.conversion.plan.bound.deltas.values()} == {"BF16"}


def test_dora_is_not_cut(tmp_path):
    saved = save(tmp_path, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(RefusedError, match="adaptrix extract") as error:
        adaptrix.resize(saved.folder, 2, tmp_path / "out", "peft", saved.base)
    assert len(error.value.problems) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (Size(), "rank or energy"),
        (Size(2, 0.9), "rank or energy"),
        (Size(0), "at least 1"),
        (Size(energy=0.0), "above 0"),
        (Size(energy=1.5), "at most 1"),
    ],
)
def test_sizes_that_make_no_sense(size, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        run(adapter(1), tmp_path, size)


def test_the_command(tmp_path, capsys, monkeypatch):
    saved = save(tmp_path, target_modules=["q_proj"])
    here = placed(tmp_path, capsys, monkeypatch)
    code, out, err = here.run("resize", saved.folder, "--rank", 2, "--base", saved.base)
    assert (code, err) == (0, "")
    assert "adapter-r2.adaptrix.safetensors" in out
    assert "rank 3 made rank 2" in out
    code, out, _ = here.run("resize", saved.folder, "--energy", 0.9, "--json", "--to", "peft", "-o", "small")
    told = json.loads(out)
    assert (code, told["path"]) == (0, "small")
    assert told["kept"] >= 0.9
    assert here.run("resize", saved.folder, "--rank", 2)[0] == 2  # it exists
    code, _, err = here.run("resize", saved.folder)
    assert (code, "--rank or --energy" in err) == (2, True)
    broken = replace(saved, folder=tmp_path / "none")
    assert here.run("resize", broken.folder, "--rank", 2)[0] == 2
