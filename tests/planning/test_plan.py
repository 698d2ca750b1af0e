import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptrix.binding.bind import bind
from adaptrix.binding.identify import by_paths
from adaptrix.errors import RefusedError, UsageError
from adaptrix.measuring.policies import planned
from adaptrix.planning.plan import make_plan, powerless
from adaptrix.planning.prune import cast, pruned
from adaptrix.planning.recorded import plan_of
from adaptrix.planning.redistribute import _grouped, reshape_plan
from tests.helpers.make import LLAMA, bound


@pytest.mark.parametrize(
    ("depth", "policy", "layers"),
    [
        (32, "middle", list(range(8, 24))),
        (12, "middle", list(range(3, 9))),
        (5, "middle", [1, 2, 3]),
        (1, "middle", [0]),
        (2, "middle", [0, 1]),
        (3, "middle", [1]),
        (4, "middle", [1, 2]),
        (6, "middle", [1, 2, 3, 4]),
        (7, "middle", [2, 3, 4]),
        (8, "all", list(range(8))),
        (9, "spread:3", [0, 4, 8]),
        (9, "spread:1", [4]),
        (4, "spread:4", [0, 1, 2, 3]),
        (30, "3-5,13,23", [3, 4, 5, 13, 23]),
    ],
)
def test_policies_pick_the_layers_they_promise(depth, policy, layers):
    plan = make_plan(bound(depth), policy)
    assert list(plan.layers["layers"]) == layers
    assert sorted({site.layer for site in plan.sites}) == layers


def test_energy_picks_the_loudest_layers():
    plan = make_plan(bound(7, loud={2: 9.0, 5: 4.0}), "energy:2")
    assert plan.layers["layers"] == (2, 5)


@given(st.integers(1, 20), st.data())
def test_spread_has_as_many_layers_as_asked_and_no_two_alike(depth, data):
    count = data.draw(st.integers(1, depth))
    layers = make_plan(bound(depth), f"spread:{count}").layers["layers"]
    assert len(layers) == len(set(layers)) == count


def test_no_share_is_told_of_a_plan_that_changes_deltas():
    assert reshape_plan(make_plan(bound(4), "all"), "none", 1).retained is None
    assert reshape_plan(make_plan(bound(4), "middle"), "nearest", None).retained is None


def test_a_plan_under_which_nothing_acts_says_so():
    nothing = make_plan(bound(4, loud=dict.fromkeys(range(4), 0.0)), "all")
    assert nothing.retained is None
    assert [problem.code for problem in powerless(nothing)] == ["plan-empty"]
    assert list(powerless(make_plan(bound(4), "middle"))) == []


def test_folding_is_linear_in_the_layers():
    """A budget of look-ups, not of seconds: every dropped delta is placed by one bisection."""
    plan = make_plan(bound(400), "spread:20")
    groups, lost = _grouped(plan)
    assert lost == []
    assert sum(map(len, groups.values())) == 1200
    assert all(
        min(abs(s.layer - other) for other in plan.layers["layers"]) == abs(s.layer - home.layer)
        for home, members in groups.items()
        for s in members
    )


@given(st.integers(2, 6), st.integers(0, 99))
def test_retained_is_the_share_of_the_dense_norms(depth, seed):
    plan = make_plan(bound(depth, seed=seed), "middle")
    squares = {site: np.linalg.norm(delta.dense()) ** 2 for site, delta in plan.bound.deltas.items()}
    assert plan.retained == pytest.approx(sum(squares[s] for s in plan.sites) / sum(squares.values()))


@pytest.mark.parametrize(
    "policy", ["", "most", "spread", "spread:0", "spread:x", "energy:9", "4-2", "7", "0-9", "fit:3", "1,,2", "spread:²"]
)
def test_nonsense_is_a_usage_error_that_names_it(policy):
    with pytest.raises(UsageError) as caught:
        make_plan(bound(5), policy)
    assert caught.value.exit_code == 2
    assert policy in str(caught.value)


def test_folding_keeps_the_sum_of_every_role():
    plan = reshape_plan(make_plan(bound(6), "spread:2"), "nearest", None)
    for role in ("q", "k", "down"):
        total = sum(d.dense() for s, d in plan.bound.deltas.items() if s.role == role)
        kept = sum(plan.delta(s).dense() for s in plan.sites if s.role == role)
        np.testing.assert_allclose(kept, total, atol=1e-5)
    assert {d.rank for d in plan.overrides.values()} == {9}  # three layers of rank 3 each


def test_folding_goes_to_the_nearest_layer_and_the_lower_one_of_two():
    plan = reshape_plan(make_plan(bound(5), "0,4"), "nearest", None)
    q = {s.layer: d for s, d in plan.bound.deltas.items() if s.role == "q"}
    kept = {s.layer: plan.delta(s).dense() for s in plan.sites if s.role == "q"}
    np.testing.assert_allclose(kept[0], q[0].dense() + q[1].dense() + q[2].dense(), atol=1e-5)
    np.testing.assert_allclose(kept[4], q[4].dense() + q[3].dense(), atol=1e-5)


def test_recompression_to_a_rank_that_suffices_changes_nothing():
    plan = make_plan(bound(4), "all")
    assert reshape_plan(plan, "none", 3).overrides == {}


def test_recompression_reports_the_error_it_made():
    plan = reshape_plan(make_plan(bound(4), "all"), "none", 1)
    worst = max(
        np.linalg.norm(plan.delta(s).dense() - d.dense()) / np.linalg.norm(d.dense())
        for s, d in plan.bound.deltas.items()
    )
    (note,) = [note for note in plan.notes if note.code == "approximation"]
    assert f"{worst:.2e}" in note.found
    assert all(plan.delta(s).rank == 1 for s in plan.sites)


def test_pruning_says_what_it_drops_and_leaves_what_acted():
    plan = reshape_plan(make_plan(bound(6), "middle"), "nearest", 4)
    small = pruned(plan)
    assert small.complete
    assert tuple(small.bound.deltas) == plan.sites
    for site in plan.sites:
        np.testing.assert_array_equal(small.delta(site).dense(), plan.delta(site).dense())
    assert any("dropped 6 of 18" in note.found for note in small.notes)
    assert small.bound.adapter.altered
    assert sum(1 for _ in small.bound.adapter.tensors()) == 2 * len(plan.sites)


def test_a_complete_plan_has_nothing_to_prune():
    plan = make_plan(bound(3), "all")
    assert pruned(plan) is plan


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_casting_measures_its_rounding(dtype):
    plan = cast(make_plan(bound(2), "all"), dtype)
    assert {t.dtype for d in plan.bound.deltas.values() for t in (d.A, d.B)} == {dtype}
    assert {t.dtype for _, t in plan.bound.adapter.tensors()} == {dtype}
    assert any("relative error" in note.found for note in plan.notes)


def test_dora_is_not_folded():
    from dataclasses import replace
    from types import MappingProxyType

    from adaptrix.tensor import Tensor

    made = bound(4)
    dora = {s: replace(d, magnitude=Tensor.of(np.ones(d.shape[0], np.float32))) for s, d in made.deltas.items()}
    plan = make_plan(replace(made, deltas=MappingProxyType(dora)), "middle")
    with pytest.raises(RefusedError) as caught:
        reshape_plan(plan, "nearest", None)
    assert len(caught.value.problems) == 12  # every site, not the first


def test_a_file_s_own_plan_holds_until_another_is_asked_for():
    read = planned(make_plan(bound(8), "1,4"))  # as an injection file of this plan is read
    again = bind(read, by_paths(read, [LLAMA]))
    assert plan_of(again, None).policy == "1,4"
    assert plan_of(again, "all").policy == "all"
    assert plan_of(bound(8), None).policy == "all"
    with pytest.raises(UsageError, match="no policy"):  # empty is not absent
        plan_of(again, "")
