"""The samples of large tables that run always."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.sampling import crossed, sample

CASES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abc"), st.booleans()), min_size=1, unique=True)


@given(CASES)
def test_every_value_of_every_axis_is_in_a_sample(cases):
    for all_of, some in zip(zip(*cases, strict=True), zip(*sample(cases), strict=True), strict=True):
        assert set(some) == set(all_of)


def test_a_sample_of_a_whole_table_is_as_long_as_its_longest_axis_and_even():
    marks = {case.values: case.marks for case in crossed(range(12), "abc", [False, True], always=[(0, "c", True)])}
    assert len(marks) == 72
    quick = [case for case, slow in marks.items() if not slow]
    assert len(quick) == 13
    assert sorted(letter for _, letter, _ in quick) == [*"aaaabbbbccccc"]


def test_what_runs_always_has_to_be_in_the_table():
    with pytest.raises(AssertionError):
        crossed("ab", always=[("c",)])
