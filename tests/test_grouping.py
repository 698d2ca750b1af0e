"""Problems that differ in their place alone are shown as one, and none of them is lost."""

import re

import pytest

import adaptrix
from adaptrix.errors import AdaptrixError, Problem, RefusedError, warn_of
from adaptrix.grouping import grouped


def off(where, found="72 rows"):
    return Problem("shape", where, found, "96")


def places(*wheres):
    """Where a group is said to be, without the first place."""
    return [re.sub(", the first .*\\)", ")", problem.where) for problem in grouped(map(off, wheres))]


def test_a_single_problem_stays_as_it_is():
    problem = off("layers.3.q (model.layers.3.self_attn.q_proj)")
    assert grouped([problem]) == [problem]


@pytest.mark.parametrize(
    ("wheres", "said"),
    [
        ([f"layers.{i}.q (model.layers.{i}.self_attn.q_proj)" for i in range(28)], "q_proj of layers 0-27 (28)"),
        ([f"model.layers.{i}.mlp.up_proj lora_B" for i in (0, 2, 3)], "up_proj lora_B of layers 0,2-3 (3)"),
        ([f"transformer.h.{i}.attn.{m}" for i in (0, 1) for m in ("c_attn", "c_proj")], "c_attn, c_proj of h 0-1 (4)"),
        (["down", "gate"], "down, gate"),
        (["down", "gate", "up"], "down, gate, up (3)"),
        ([f"/data/{i}/a.bin" for i in (7, 8, 9)], "/data/7/a.bin, /data/8/a.bin, /data/9/a.bin (3)"),
        ([f"maths: layers.{i}.q (a.{i}.q)" for i in (1, 2, 3)], "maths: q of a 1-3 (3)"),
        (
            [f"layers.0.up.e{e} (model.layers.0.mlp.experts.{e}.up_proj)" for e in range(3)],
            "up_proj of layers 0, experts 0-2 (3)",
        ),
        (
            ["model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.k_proj"],
            "q_proj of layers 0-1, k_proj of layers 1 (3)",
        ),
    ],
)
def test_the_places_of_a_group(wheres, said):
    assert places(*wheres) == [said]


def test_what_says_something_else_is_apart_and_order_stays():
    problems = [off("a.0.q"), off("a.0.k", "8 rows"), off("a.1.q"), off("a.1.k", "8 rows")]
    assert [(p.where, p.found) for p in grouped(problems)] == [("a.0.q, a.1.q", "72 rows"), ("a.0.k, a.1.k", "8 rows")]


def test_an_error_has_every_problem_and_a_text_of_groups():
    error = RefusedError([off(f"model.layers.{i}.q_proj") for i in range(40)])
    assert len(error.problems) == 40
    assert str(error) == "q_proj of layers 0-39 (40, the first model.layers.0.q_proj): 72 rows; expected 96"


def test_warnings_are_grouped_too():
    problems = [Problem("shape", f"model.layers.{i}.q_proj", "odd", severity="warning") for i in range(3)]
    with pytest.warns(adaptrix.AdaptrixWarning, match=r"q_proj of layers 0-2 \(3, .*: odd") as caught:
        warn_of(problems)
    assert len(caught) == 1


def test_no_problems_is_no_text():
    assert str(AdaptrixError([])) == ""
