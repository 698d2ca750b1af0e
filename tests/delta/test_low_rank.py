import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptrix.architecture.layout import part_rows
from adaptrix.delta import LowRank, distance, from_factors, fuse, split, stack, straightened, truncate
from adaptrix.tensor import FileRange, Tensor
from tests.helpers.make import low_rank

pytestmark = pytest.mark.numeric

sizes = st.integers(2, 9)
seeds = st.integers(0, 2**32 - 1)


@given(sizes, sizes, st.integers(1, 4), seeds, st.booleans())
def test_energy_is_the_squared_norm_of_the_dense_delta(out, inp, rank, seed, rslora):
    rng = np.random.default_rng(seed)
    delta = low_rank(rng, out, inp, rank, alpha=5.0)
    delta = LowRank(delta.A, delta.B, 5.0, rslora=rslora)
    assert delta.energy() == pytest.approx(np.linalg.norm(delta.dense()) ** 2, rel=1e-9)


@given(sizes, sizes, st.integers(8, 40), seeds)
def test_energy_of_a_rank_beyond_both_sides(out, inp, rank, seed):
    delta = low_rank(np.random.default_rng(seed), out, inp, rank)
    assert delta.energy() == pytest.approx(np.linalg.norm(delta.dense()) ** 2, rel=1e-9)


def peak(action):
    """What an action returns, and the most memory it held at once."""
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_rank_asks_for_more_than_its_factors():
    delta = low_rank(np.random.default_rng(0), 16, 16, 3000)
    size = delta.A.nbytes + delta.B.nbytes
    assert peak(delta.energy)[1] < 4 * size
    (A, B), held = peak(lambda: stack([delta]))
    assert held < 12 * size
    (small_A, small_B), held = peak(lambda: truncate(A, B, 3000))
    assert held < 12 * size
    assert small_A.shape == small_B.shape == (16, 16)
    gap, held = peak(lambda: distance(delta, small_A, small_B))
    assert held < 24 * size
    assert gap < 1e-9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"])
def test_what_is_not_finite_is_counted(dtype, bad):
    if dtype == "F8_E4M3":
        bad = np.nan  # it has no Inf
    array = np.linspace(-400, 400, 3000).reshape(30, 100)
    assert Tensor.of(array).cast(dtype).nonfinite() == 0
    array[[2, 5, 29], [0, 7, 99]] = bad
    assert Tensor.of(array).cast(dtype).nonfinite() == 3


@pytest.mark.parametrize("dtype", ["F64", "BF16", "F8_E4M3"])
def test_counting_copies_no_tensor(dtype, tmp_path):
    tensor = Tensor(
        dtype, (1 << 11, 1 << 12), bytes((1 << 23) * (8 if dtype == "F64" else 2 if dtype == "BF16" else 1))
    )
    (tmp_path / "data").write_bytes(tensor.tobytes())
    for one in (tensor, Tensor(dtype, tensor.shape, FileRange(tmp_path / "data", 0, tensor.nbytes))):
        found, held = peak(one.nonfinite)
        assert found == 0
        assert held < 6 << 20


@given(sizes, sizes, seeds)
def test_energy_of_stacked_experts_is_that_of_each(out, inp, seed):
    rng = np.random.default_rng(seed)
    experts, rank = 3, 2
    A = Tensor.of(rng.standard_normal((experts * rank, inp)))
    B = Tensor.of(rng.standard_normal((out, rank * experts)))
    delta = LowRank(A, B, 3.0, experts=experts)
    assert delta.dense().shape == (experts, out, inp)
    assert delta.energy() == pytest.approx(np.linalg.norm(delta.dense()) ** 2, rel=1e-9)


@given(sizes, sizes, seeds)
def test_straightening_moves_numbers_and_keeps_the_delta(out, inp, seed):
    rng = np.random.default_rng(seed)
    experts, rank = 3, 2
    A, B = rng.standard_normal((experts * rank, out)), rng.standard_normal((inp, rank * experts))
    turned = LowRank(Tensor.of(A), Tensor.of(B), 3.0, experts=experts, transposed=True)
    straight = straightened(turned)
    assert straight.A.shape == (experts * rank, inp)
    np.testing.assert_allclose(straight.dense(), turned.dense(), rtol=1e-12)
    assert sorted(straight.A.numpy().ravel()) == sorted(B.ravel())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), seeds)
def test_fusing_split_parts_gives_the_delta_back(shares, groups, seed):
    rows = part_rows({f"p{i}": share * groups for i, share in enumerate(shares)}, groups)
    delta = low_rank(np.random.default_rng(seed), sum(shares) * groups, 7, 2)
    np.testing.assert_allclose(fuse(split(delta, rows), rows).dense(), delta.dense(), atol=1e-6)


def test_fusing_some_parts_leaves_the_others_zero():
    rows = part_rows({"q": 4, "k": 2, "v": 2}, 2)
    part = low_rank(np.random.default_rng(0), 2, 5, 3)
    dense = fuse({"v": part}, rows).dense()
    np.testing.assert_allclose(dense[rows["v"]], part.dense(), atol=1e-6)
    assert not dense[np.concatenate([rows["q"], rows["k"]])].any()


def test_parts_of_unlike_scales_are_not_fused():
    rng = np.random.default_rng(0)
    parts = {"q": low_rank(rng, 2, 5, 3, alpha=1.0), "v": low_rank(rng, 2, 5, 3, alpha=2.0)}
    with pytest.raises(ValueError, match="scales"):
        fuse(parts, part_rows({"q": 2, "v": 2}))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), seeds)
def test_a_stack_is_the_sum(ranks, seed):
    rng = np.random.default_rng(seed)
    deltas = [low_rank(rng, 8, 6, rank, alpha=float(i + 1)) for i, rank in enumerate(ranks)]
    A, B = stack(deltas)
    np.testing.assert_allclose(B @ A, sum(delta.dense() for delta in deltas), atol=1e-9)


@given(st.integers(1, 6), seeds)
def test_truncation_is_the_best_of_its_rank(rank, seed):
    delta = low_rank(np.random.default_rng(seed), 9, 7, 6)
    A, B = stack([delta])
    small_A, small_B = truncate(A, B, rank)
    _U, s, _Vt = np.linalg.svd(delta.dense())
    assert np.linalg.norm(delta.dense() - small_B @ small_A) == pytest.approx(np.linalg.norm(s[rank:]), abs=1e-9)


@given(st.integers(1, 6), st.sampled_from(["F32", "F16", "BF16"]), seeds)
def test_the_measured_error_is_the_true_one(rank, dtype, seed):
    delta = low_rank(np.random.default_rng(seed), 9, 7, 6)
    A, B = stack([delta])
    written = from_factors(*truncate(A, B, rank), dtype)
    true = np.linalg.norm(written.dense() - delta.dense()) / np.linalg.norm(delta.dense())
    assert distance(written, A, B) == pytest.approx(true, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_casting_rounds_to_nearest_and_rows_are_views(dtype):
    array = np.random.default_rng(0).standard_normal((5, 3))
    tensor = Tensor.of(array).cast(dtype)
    assert tensor.dtype == dtype
    epsilon = {"F64": 0.0, "F32": 2**-24, "F16": 2**-11, "BF16": 2**-8, "F8_E4M3": 2**-4, "F8_E5M2": 2**-3}[dtype]
    np.testing.assert_allclose(tensor.float64(), array, rtol=epsilon, atol=0.01 if dtype[:2] == "F8" else 0)
    assert tensor.rows(1, 3).tobytes() == tensor.tobytes()[tensor.nbytes // 5 : 3 * tensor.nbytes // 5]
