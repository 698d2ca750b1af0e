"""Files whose plan leaves deltas out: whoever follows it without having asked is warned."""

import warnings
from dataclasses import replace

import pytest

import adaptrix
from tests.helpers.merge_models import pair


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("inactive"), "llama", targets=["q_proj"])


@pytest.fixture
def half(made, tmp_path):
    return adaptrix.convert(made.adapter, tmp_path / "half.adaptrix.safetensors", base=made.base, layers="middle")


def test_every_layer_acts_unless_fewer_are_asked_for(made, tmp_path):
    path = adaptrix.convert(made.adapter, tmp_path / "it.adaptrix.safetensors", base=made.base)
    assert adaptrix.load(path).recorded.policy == "all"


def test_attaching_and_merging_such_a_file_warns_once(made, half, tmp_path):
    with pytest.warns(adaptrix.AdaptrixWarning, match="1 of 3 deltas act, .*% of") as caught:
        adaptrix.attach(made.model.unload(), {"x": half}).detach()
    assert len(caught) == 1
    with pytest.warns(adaptrix.AdaptrixWarning, match="its file's plan middle is followed: 1 of 3 deltas act"):
        adaptrix.merge(half, made.base, tmp_path / "merged")


def test_who_looks_at_such_a_file_is_told_the_same(made, half):
    for problems in (adaptrix.check(half).problems, adaptrix.inspect(half, made.base).problems):
        (told,) = (problem for problem in problems if problem.code == "left-out")
        assert told.severity == "warning"
        assert "its file's plan middle is followed: 1 of 3 deltas act, " in str(told)
        assert "unless --layers all is chosen" in told.remedy
    assert adaptrix.check(half).ok
    whole = (adaptrix.check(made.adapter), adaptrix.inspect(made.adapter))
    assert not any(problem.code == "left-out" for report in whole for problem in report.problems)


def test_a_plan_that_cannot_be_followed_is_told(made, half):
    adapter = adaptrix.load(half)
    moved = replace(adapter.recorded, layers={"depth_of_another_family": (1,)})
    report = adaptrix.check(replace(adapter, recorded=moved), made.base)
    (told,) = (problem for problem in report.problems if problem.code == "plan-mismatch")
    assert (report.ok, told.severity) == (True, "warning")


@pytest.mark.parametrize("layers", ["all", "middle", "1"])
def test_layers_that_were_asked_for_warn_of_nothing(made, half, tmp_path, layers):
    with warnings.catch_warnings():
        warnings.simplefilter("error", adaptrix.AdaptrixWarning)
        adaptrix.merge(half, made.base, tmp_path / "merged", layers=layers)
