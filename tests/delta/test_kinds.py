"""Every kind of delta answers everything, what it says is true, and every floor has a row for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adaptrix.base.svd import SvdCache, spectral_delta
from adaptrix.delta import KINDS, PARAMETRISATIONS, Delta, LowRank, Parametrised, Scale
from adaptrix.errors import RefusedError
from adaptrix.formats import injection_kinds
from adaptrix.merging import drafting
from adaptrix.runtime import kinds as runtime_kinds
from adaptrix.tensor import Tensor
from tests.helpers.diagonal import answers, tensor

#: the table of each floor that has one
TABLES = {"injection file": injection_kinds, "merging": drafting, "runtime": runtime_kinds}
OUT, INP, RANK = 6, 9, 3
ADALORA = {"lora_A": (RANK, INP), "lora_B": (OUT, RANK), "lora_E": (RANK, 1)}
SCALE = Scale(Tensor.of(np.linspace(0.5, 1.6, OUT, dtype=np.float32)[:, None]), inputs=False)
SETTINGS = {"vera": {"in": INP, "widest": INP, "tallest": OUT, "seed": 3}, "miss": {"in": INP, "out": OUT}}
PLACES = Tensor.of(np.array([[place % OUT for place in range(20)], [place % INP for place in range(20)]], np.int32))
SETTINGS |= {"shira": {"in": INP, "out": OUT}}
SETTINGS |= {"vblora": {"topk": 2}, "fourierft": {"in": INP, "out": OUT, "seed": 5}}
#: all but the one whose ΔW takes the base
ALONE = [kind for kind in KINDS if kind != "scale"]


def lora(rng):
    return LowRank(tensor(rng, RANK, INP), tensor(rng, OUT, RANK), alpha=2.0)


def parametrised(rng):
    """The tensors of each kind that is a LoRA in another parametrisation."""
    factors = {"a": (OUT, 2), "b": (2, INP)}
    return {
        "adalora": {name: tensor(rng, *shape) for name, shape in ADALORA.items()},
        "loha": {f"hada_w{i}_{side}": tensor(rng, *shape) for i in (1, 2) for side, shape in factors.items()},
        "vera": {"vera_lambda_b": tensor(rng, OUT), "vera_lambda_d": tensor(rng, RANK)},
        "miss": {"miss_block": tensor(rng, RANK, OUT)},
        "gralora": {"gralora_A": tensor(rng, 1, INP, RANK), "gralora_B": tensor(rng, 1, RANK, OUT)},
        "delora": {
            "delora_A": tensor(rng, RANK, INP),
            "delora_B": tensor(rng, OUT, RANK),
            "delora_lambda": tensor(rng, 1),
            "delora_w_norm": tensor(rng, INP),
        },
        "vblora": {"vblora_logits_A": tensor(rng, RANK, 3, 5), "vblora_logits_B": tensor(rng, 2, RANK, 5)},
        "shira": {"shira_weight": tensor(rng, 20), "shira_indices": PLACES},
        "fourierft": {"fourierft_spectrum": tensor(rng, 20)},
        "c3a": {"c3a_kernel": tensor(rng, 2, 3, 3)},
        "lokr": {"lokr_w1": tensor(rng, 2, 3), "lokr_w2_a": tensor(rng, 3, 2), "lokr_w2_b": tensor(rng, 2, 3)},
    }


@pytest.fixture
def deltas(tmp_path):
    rng = np.random.default_rng(0)
    own = spectral_delta(1 + rng.standard_normal(OUT), tensor(rng, OUT, INP), SvdCache(tmp_path))
    bank = {"vblora_vector_bank": tensor(rng, 5, 3)}
    made = {
        kind: Parametrised(kind, parts, 0.7, SETTINGS.get(kind, {}), bank if kind == "vblora" else {})
        for kind, parts in parametrised(rng).items()
    }
    return {
        "lora": lora(rng),
        "dora": replace(lora(rng), magnitude=tensor(rng, OUT)),
        "spectral": own,
        "scale": SCALE,
    } | made


@pytest.fixture(params=KINDS)
def delta(request, deltas):
    return deltas[request.param]


def test_the_list_has_every_kind_once(deltas):
    assert deltas.keys() == KINDS.keys()
    for name, delta in deltas.items():
        assert delta.kind == name
        assert type(delta) is KINDS[name]


@pytest.mark.parametrize("floor", TABLES)
def test_every_floor_has_a_row_for_every_kind(floor):
    assert TABLES[floor].KINDS.keys() == KINDS.keys()


def test_every_kind_answers_everything(delta):
    asked = answers(Delta)
    assert {"axes", "energy", "of_rows", "low_rank", "site_problems"} <= asked
    assert [name for name in sorted(asked) if not hasattr(delta, name)] == []
    assert len(set(delta.axes)) == 2


@pytest.mark.parametrize("delta", ALONE, indirect=True)
def test_what_a_kind_says_of_itself_is_true(delta):
    dense = delta.dense()
    assert delta.shape == dense.shape == (OUT, INP)
    assert delta.energy() == pytest.approx((dense**2).sum())
    assert np.allclose(delta.multiplied(-2.5).dense(), -2.5 * dense)
    assert delta.multiplied(1.0).tensors().keys() == delta.tensors().keys()
    assert delta.without_vectors().energy() == delta.energy()
    named = {id(tensor) for tensor in delta.tensors().values()}
    assert {id(tensor) for tensor in delta.energy_tensors()} <= named


def test_rounding_can_be_measured(delta):
    rounded = delta.cast("BF16")
    pairs = [*zip(delta.compared(), rounded.compared(), strict=True)]
    assert any(not np.array_equal(before, after) for before, after in pairs)
    assert all(np.allclose(before, after, rtol=0.05, atol=0.05) for before, after in pairs)
    assert rounded.shape == delta.shape


def test_rows_of_a_change_are_the_rows_of_its_product_or_refused(deltas):
    rows = np.array([4, 1])
    for name in ("lora", "dora"):
        assert np.allclose(deltas[name].of_rows(rows).dense(), deltas[name].dense()[rows])
    assert deltas["dora"].of_rows(rows).magnitude.shape == (2,)
    for name in ("spectral", *PARAMETRISATIONS):
        with pytest.raises(RefusedError, match="2 of 6 rows"):
            deltas[name].of_rows(rows)


@pytest.mark.parametrize("delta", ALONE, indirect=True)
def test_the_exact_lora_loses_nothing(delta):
    made, loss = delta.low_rank()
    assert isinstance(made, LowRank)
    assert np.allclose(made.dense(), delta.dense(), atol=1e-5)
    assert loss.relative < 1e-6
    assert delta.lost(None).relative == 0


@pytest.mark.parametrize("kind", ["lora", "spectral", *PARAMETRISATIONS])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_smaller_lora_loses_what_was_said_without_the_base(deltas, kind, rank):
    made, loss = deltas[kind].low_rank(rank)
    gap = np.linalg.norm(made.dense() - deltas[kind].dense())
    assert made.rank == rank
    assert loss.absolute == pytest.approx(gap, rel=1e-4)
    assert deltas[kind].without_vectors().lost(rank).absolute == pytest.approx(gap, rel=1e-4)
    assert np.linalg.matrix_rank(deltas[kind].dense()) > rank
    assert deltas[kind].smallest_rank(loss.relative * 1.01) == rank
    assert deltas[kind].smallest_rank(loss.relative * 0.99) > rank


def test_what_multiplies_the_base_says_so_where_the_base_is_asked_for():
    for ask in (SCALE.dense, SCALE.low_rank, lambda: SCALE.lost(3), lambda: SCALE.smallest_rank(0.1)):
        with pytest.raises(RefusedError, match="multiplies the base's weight"):
            ask()
    assert SCALE.shape == (OUT, 0)
    assert replace(SCALE, inputs=True).shape == (0, OUT)
    assert SCALE.energy() == pytest.approx(((SCALE.vector.float64() - 1) ** 2).sum())
    assert np.allclose(SCALE.multiplied(-2.5).change, -2.5 * SCALE.change)
    assert np.allclose(SCALE.of_rows(np.array([4, 1])).change, SCALE.change[[4, 1]])
    assert SCALE.multiplied(1.0) is SCALE


def test_dora_has_no_smaller_lora(deltas):
    for ask in (lambda: deltas["dora"].low_rank(1), lambda: deltas["dora"].lost(1)):
        with pytest.raises(RefusedError, match="DoRA"):
            ask()


def test_only_low_rank_deltas_can_be_seen_to_be_transposes(deltas):
    one = deltas["lora"]
    other = replace(one, A=Tensor.of(one.B.numpy().T.copy()), B=Tensor.of(one.A.numpy().T.copy()))
    assert one.is_transpose_of(other)
    assert not one.is_transpose_of(one)
    assert not any(deltas[kind].is_transpose_of(deltas[kind]) for kind in KINDS)
