"""How the parts of a fused weight lie among its rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptrix.architecture import Role
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import part_rows, role_rows
from adaptrix.delta import LowRank, fuse, split
from adaptrix.tensor import Tensor

_SIZES = st.tuples(st.integers(1, 5), st.dictionaries(st.sampled_from("qkvxyz"), st.integers(1, 4), min_size=1))


def test_contiguous_is_part_after_part() -> None:
    rows = part_rows({"q": 4, "k": 2, "v": 2})
    assert {part: found.tolist() for part, found in rows.items()} == {"q": [0, 1, 2, 3], "k": [4, 5], "v": [6, 7]}


def test_grouped_is_group_after_group() -> None:
    rows = part_rows({"q": 4, "k": 2, "v": 2}, groups=2)
    assert {part: found.tolist() for part, found in rows.items()} == {"q": [0, 1, 4, 5], "k": [2, 6], "v": [3, 7]}


def test_neox_reshapes_the_same_way() -> None:
    heads, width = 3, 4
    fused = np.arange(3 * heads * width).reshape(heads, 3, width)  # as GPT-NeoX views its rows
    rows = part_rows(dict.fromkeys("qkv", heads * width), groups=heads)
    for number, part in enumerate("qkv"):
        assert rows[part].tolist() == fused[:, number].reshape(-1).tolist()


def test_rows_that_groups_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups"):
        part_rows({"q": 6, "k": 4}, groups=3)


@given(_SIZES)
def test_every_row_belongs_to_one_part(given_sizes: tuple[int, dict[str, int]]) -> None:
    groups, shares = given_sizes
    sizes = {part: share * groups for part, share in shares.items()}
    rows = part_rows(sizes, groups)
    assert {part: len(found) for part, found in rows.items()} == sizes
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(sum(sizes.values())))


@given(_SIZES)
def test_fuse_undoes_split(given_sizes: tuple[int, dict[str, int]]) -> None:
    groups, shares = given_sizes
    rows = part_rows({part: share * groups for part, share in shares.items()}, groups)
    out = sum(map(len, rows.values()))
    rng = np.random.default_rng(out)
    A, B = rng.integers(-9, 9, (2, 5)).astype(np.float32), rng.integers(-9, 9, (out, 2)).astype(np.float32)
    delta = LowRank(Tensor.of(A), Tensor.of(B), alpha=2.0)
    assert np.array_equal(fuse(split(delta, rows), rows).dense(), delta.dense())


def test_the_rows_of_a_role_come_from_its_dims() -> None:
    parts = {"q": "heads * width", "k": "groups * width", "v": "groups * width"}
    role = Role("qkv", ("x",), parts=parts, layout="grouped", groups="groups")
    rows = role_rows(role, Dims({"heads": 4, "groups": 2, "width": 1}))
    assert rows is not None
    assert {part: found.tolist() for part, found in rows.items()} == {"q": [0, 1, 4, 5], "k": [2, 6], "v": [3, 7]}
    assert role_rows(role, Dims({"heads": 4, "width": 1})) is None
    contiguous = Role("qkv", ("x",), parts={"q": "heads", "k": "unknown"})
    assert role_rows(contiguous, Dims({"heads": 4})) is None
