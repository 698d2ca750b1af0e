"""Decompositions: what they are, that they are kept, and that no delta meets a weight that is not its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptrix.base.svd import SvdCache, cache, decompose, resolve, spectral_delta, tensor_hash
from adaptrix.base.svd.lapack import sensitivity
from adaptrix.delta import Basis, Spectral
from adaptrix.errors import RefusedError
from adaptrix.tensor import Tensor

pytestmark = pytest.mark.numeric


def matrix(out, inp, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((out, inp)).astype(dtype)


@pytest.fixture
def kept(tmp_path):
    return SvdCache(tmp_path / "svd")


@pytest.fixture
def pair(kept):
    """A bare delta and its weight, in bf16."""
    weight = Tensor.of(matrix(9, 14)).cast("BF16")
    z = 1 + 0.4 * np.random.default_rng(1).standard_normal(9)
    return spectral_delta(z, weight, kept).without_vectors(), weight


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_laws_of_a_decomposition(out, inp, seed):
    weight = matrix(out, inp, seed)
    U, S, Vt = decompose(weight)
    k = min(out, inp)
    assert [(a.shape, a.dtype) for a in (U, S, Vt)] == [((out, k), "f4"), ((k,), "f8"), ((k, inp), "f4")]
    assert (np.diff(S) <= 0).all()
    np.testing.assert_allclose((U * S) @ Vt, weight, atol=1e-6 * S[0])
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-6)
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), atol=1e-6)
    assert (U[np.abs(U).argmax(axis=0), np.arange(k)] > 0).all()
    for array, again in zip((U, S, Vt), decompose(weight.copy()), strict=True):
        assert array.tobytes() == again.tobytes()


def test_signs_are_those_of_the_matrix_and_not_of_who_asks():
    weight = matrix(12, 7)
    U, _, Vt = decompose(weight)
    left, _, right = np.linalg.svd(weight, full_matrices=False)
    flips = np.sign((left * U).sum(axis=0))
    assert {-1.0, 1.0} == set(flips.tolist())  # LAPACK's own are of both kinds
    np.testing.assert_allclose(left * flips, U, atol=1e-5)
    np.testing.assert_allclose(flips[:, None] * right, Vt, atol=1e-5)


@pytest.mark.parametrize("bad", [np.ones(4), np.ones((0, 4)), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_what_has_no_decomposition(bad):
    with pytest.raises(RefusedError):
        decompose(bad.astype(np.float32))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 4)])
def test_what_is_no_matrix_is_refused_before_anything_is_kept(kept, shape):
    with pytest.raises(RefusedError, match="a matrix"):
        spectral_delta(np.ones(2), Tensor.of(np.zeros(shape, np.float32)), kept)
    assert not kept.folder.exists()


def test_each_is_computed_once(kept, monkeypatch):
    weight = Tensor.of(matrix(6, 4))
    first = kept.svd(weight)
    monkeypatch.setattr(cache, "decompose", lambda *_: pytest.fail("computed again"))
    assert kept.svd(Tensor.of(matrix(6, 4))).digest == first.digest
    assert SvdCache(kept.folder).svd(weight).digest == first.digest


def test_equal_bytes_of_other_weights_are_other_entries(kept):
    weight = Tensor.of(matrix(6, 4))
    others = [(weight.reshape(4, 6), False), (weight, True), (Tensor("I32", (6, 4), weight.data), False)]
    own = kept.path(weight)
    assert len({own, *(kept.path(other, turned=turned) for other, turned in others)}) == 4
    turned = kept.svd(weight, turned=True)
    np.testing.assert_allclose((turned.U.numpy() * turned.S.numpy()) @ turned.Vt.numpy(), weight.numpy().T, atol=1e-5)


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "other", "text"])
def test_a_damaged_entry_is_computed_again(kept, how):
    weight = Tensor.of(matrix(6, 4))
    kept.svd(weight)
    path = kept.path(weight)
    good = path.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])  # the lowest bit of some mantissa
    other = Tensor.of(matrix(4, 6))
    kept.svd(other)
    damage = {
        "flip": flipped,
        "cut": good[:-9],
        "empty": b"",
        "other": kept.path(other).read_bytes(),
        "text": b"x" * 99,
    }
    path.write_bytes(damage[how])
    kept.svd(weight)
    assert path.read_bytes() == good


def test_what_is_done_stays_when_the_rest_is_interrupted(kept, monkeypatch):
    first, second = (Tensor.of(matrix(6, 4, seed)) for seed in (0, 1))
    kept.svd(first)
    monkeypatch.setattr(cache.safetensors_file, "write", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.svd(second)
    assert [path.name for path in kept.folder.iterdir()] == [kept.path(first).name]


def _interrupted(path, *_):
    path.write_bytes(b"half of it")
    raise KeyboardInterrupt


def test_where_decompositions_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTRIX_CACHE", str(tmp_path / "own"))
    assert SvdCache().folder == tmp_path / "own" / "svd"
    monkeypatch.delenv("ADAPTRIX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert SvdCache().folder == tmp_path / "xdg" / "adaptrix" / "svd"
    monkeypatch.setenv("ADAPTRIX_CACHE", "~nobody-of-that-name/x")
    assert SvdCache().folder == Path("~nobody-of-that-name/x/svd")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RefusedError, match="ADAPTRIX_CACHE"):
        SvdCache(tmp_path / "file" / "svd").svd(Tensor.of(matrix(2, 3)))


def test_a_delta_gets_the_vectors_of_its_weight(pair, kept):
    delta, weight = pair
    whole = resolve(delta, weight, kept)
    assert whole.resolved
    assert whole.basis == Basis(tensor_hash(weight), "BF16", "lapack-f64")
    loaded_wide = resolve(delta, Tensor.of(weight.float32()), kept)
    np.testing.assert_array_equal(whole.dense(), loaded_wide.dense())
    assert resolve(whole, weight, kept) is whole


def test_a_stored_transpose_is_the_weight_of_a_conv1d(kept):
    weight = Tensor.of(matrix(5, 8))  # [in, out]
    delta = spectral_delta(np.linspace(0.5, 2, 5), weight, kept, turned=True)
    assert delta.shape == (8, 5)
    again = resolve(delta.without_vectors(), weight, kept, turned=True)
    np.testing.assert_array_equal(again.dense(), delta.dense())
    with pytest.raises(RefusedError, match="shape"):
        resolve(delta, weight, kept)


def refusal(delta, weight, kept, **options):
    with pytest.raises(RefusedError) as error:
        resolve(delta, weight, kept, where="layers.3.q", **options)
    (problem,) = error.value.problems
    assert problem.where == "layers.3.q"
    assert problem.expected
    assert problem.remedy
    return problem.code


def test_no_delta_meets_a_weight_that_is_not_its_own(pair, kept):
    delta, weight = pair
    numbers = weight.float32().copy()
    numbers[3, 3] *= 1.01
    assert refusal(delta, Tensor.of(numbers), kept) == "base-mismatch"
    assert refusal(delta, Tensor.of(matrix(9, 13)), kept) == "shape"
    assert refusal(delta, Tensor("U8", (9, 14), bytes(126)), kept) == "quantised"
    values = delta.S.float32().copy()
    values[2] *= 1.001
    assert refusal(replace(delta, S=Tensor.of(values)), weight, kept) == "svd-mismatch"
    assert refusal(replace(delta, S=Tensor.of(values * np.nan)), weight, kept) == "svd-mismatch"
    foreign = replace(delta, basis=replace(delta.basis, backend="bf16-somewhere"))
    assert refusal(foreign, weight, kept) == "option"


def test_given_vectors_are_held_to_the_weight(pair, kept):
    delta, weight = pair
    whole = resolve(delta, weight, kept)
    foreign = replace(whole, basis=replace(whole.basis, backend="somebody's"))
    assert resolve(foreign, weight, kept) is foreign
    U, Vt = whole.vectors()
    for bad in (
        replace(whole, U=Tensor.of(U * np.float32(1.01))),
        replace(whole, U=Tensor.of(U[:, ::-1])),
        replace(whole, Vt=Tensor.of(np.roll(Vt, 1, axis=1))),
        replace(whole, Vt=Tensor.of(Vt * np.float32(np.nan))),
        replace(whole, U=whole.U.cast("BF16").cast("F32")),
        # a product that is right, of factors that are not orthonormal
        replace(whole, U=Tensor.of(U * np.float32(2)), Vt=Tensor.of(Vt / np.float32(2))),
    ):
        assert refusal(bad, weight, kept) == "svd-mismatch"


def test_values_too_close_to_say_what_z_means(kept):
    weight = Tensor.of(np.eye(6, 8, dtype=np.float32))
    uneven = spectral_delta(np.linspace(0.5, 1.5, 6), weight, kept)
    assert refusal(uneven.without_vectors(), weight, kept) == "svd-failed"
    assert resolve(uneven, weight, kept) is uneven  # with its vectors it says which
    even = spectral_delta(np.full(6, 1.5), weight, kept)
    np.testing.assert_allclose(resolve(even.without_vectors(), weight, kept).dense(), 0.5 * np.eye(6, 8), atol=1e-6)
    nothing = Tensor.of(np.zeros((4, 3), np.float32))
    assert not resolve(spectral_delta(np.arange(3.0), nothing, kept).without_vectors(), nothing, kept).dense().any()


def test_an_entry_that_goes_after_it_was_found_is_still_read_and_one_that_is_cut_off_is_a_refusal(kept):
    weight = Tensor.of(matrix(5, 7))
    found = kept.svd(weight)
    numbers = found.U.tobytes()
    kept.path(weight).unlink()
    assert found.U.tobytes() == numbers
    other = Tensor.of(matrix(7, 5))
    found = kept.svd(other)
    kept.path(other).write_bytes(b"")
    for used in (found.U.tobytes, lambda: list(found.S.chunks())):
        with pytest.raises(RefusedError, match="the file changed while it was read"):
            used()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1.0, 1e200])
def test_neither_sensitivity_nor_loss_depends_on_the_size_of_d(size):
    S, d = np.array([4.0, 3.0, 2.0]), np.array([3.0, 2.0, -1.0])
    assert sensitivity(size * d, S, "lapack-f32") == pytest.approx(sensitivity(d, S, "lapack-f32"))
    of = Basis("0" * 64, "F32", "lapack-f64")
    delta = Spectral(Tensor.of(1.0 + size * d), Tensor.of(np.ones(3, np.float32)), of, (3, 4))
    assert delta.lost(1).relative == pytest.approx((5 / 14) ** 0.5)
    assert delta.lost(1).size == pytest.approx(size * 14**0.5)


@pytest.mark.parametrize("gap", [1e-3, 1e-6])
def test_the_sensitivity_is_of_the_size_of_what_rounding_does(gap):
    """Beside the same SVD of the weight after fp32 noise, which is what another backend in fp32 amounts to."""
    rng = np.random.default_rng(0)
    k = 40
    U, V = (np.linalg.qr(rng.standard_normal((k, k)))[0] for _ in range(2))
    S = np.linspace(2, 1, k)
    S[11] = S[10] - gap
    d = S * 0.3 * rng.standard_normal(k)
    d[10], d[11] = 1.0, -1.0
    weight = (U * S) @ V
    apart = []
    for _ in range(8):
        noise = rng.standard_normal((k, k)) * 2.0**-21 * S[0] / np.sqrt(k) / 2
        left, _, right = np.linalg.svd(weight + noise)
        apart.append(np.linalg.norm((left * d) @ right - (U * d) @ V) / np.linalg.norm(d))
    told = sensitivity(d, S, "lapack-f32")
    assert told / 10 < np.mean(apart) < 3 * told, (told, np.mean(apart))
