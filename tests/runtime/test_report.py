"""The report of a session as it is printed: a row a role; and objects that are short to look at."""

import pytest
import torch

from adaptrix.adapter import Adapter
from adaptrix.attaching import attach
from adaptrix.measuring.report import FidelityReport
from adaptrix.runtime.report import SessionReport
from tests.helpers.attached import logits, saved
from tests.helpers.families import tiny_model


def cells(report):
    """The rows of the table by role, as columns."""
    lines = [line.split() for line in str(report).splitlines()]
    return {line[0]: line[1:] for line in lines[1:-1]}


@pytest.fixture
def session(tmp_path):
    model = tiny_model("llama").eval()
    saved(model, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    saved(model, tmp_path / "b", target_modules=["v_proj"], layers_to_transform=[1])
    with attach(model, {name: tmp_path / name for name in "ab"}, measure=True) as session:
        yield session


def test_a_row_for_each_role(session):
    depth = session._hooks.model.config.num_hidden_layers
    with session.use("a"):
        for _ in range(2):
            logits(session._hooks.model)
    found = cells(session.report())
    assert found == {
        "q": [f"0-{depth - 1}", str(depth), str(2 * depth), "2"],
        "head": ["-", "1", "2", "2"],
        "v": ["1", "1", "0", "0", "1"],
    }
    last = str(session.report()).splitlines()[-1]
    assert last.startswith("swaps 0, layers kept 0, drift ")
    assert "pagings" not in last


def test_layers_that_differ_and_experts_and_unknown_modules():
    injections = {"layers.0.up.e0": 3, "layers.0.up.e1": 5, "layers.2.up.e0": 0, "modules.blocks.3.wq": 1}
    report = SessionReport({**injections, "modules.blocks.4.wq": 1}, 1, 2, None, None, None, 7, ())
    assert cells(report) == {
        "up": ["0,2", "3", "8", "0-5", "2"],
        "modules.blocks.{layer}.wq": ["3-4", "2", "2", "1"],
    }
    assert str(report).splitlines()[-1] == "swaps 1, layers kept 2, pagings 7"


def test_a_table_is_never_long():
    report = SessionReport({f"modules.part{number}": 1 for number in range(5000)}, 0, 0, None, None, None, None, ())
    assert len(str(report).splitlines()) < 70
    assert "more roles" in str(report)


def test_what_a_session_gives_is_at_most_three_lines_to_look_at(session):
    many = {f"layers.{layer}.{role}": 1 for layer in range(400) for role in "qkvo"}
    report = SessionReport(many, 0, 0, 1, 0.5, 0.5, 1, ())
    draft = session.prefill_shared({"input_ids": torch.tensor([[1, 2, 3]])}, ["a"])[0]
    fidelity = FidelityReport("a", "b", Adapter, {}, 1, 1, 1, 1, 0, "F32", "cpu", 1, ())
    for each in (report, draft, session, fidelity):
        assert len(repr(each)) < 240
        assert "\n" not in repr(each)
        assert repr(each).startswith(f"<{type(each).__name__}")
