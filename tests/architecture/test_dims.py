"""Expressions and rules: what they resolve to, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptrix.architecture.dims import Alternative, Dims, Rule, UnresolvedError, evaluate, names_in, parse, read_dims


def _rules(**rules: Any) -> dict[str, Rule]:
    return {name: tuple(o if isinstance(o, Alternative) else Alternative(o) for o in r) for name, r in rules.items()}


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("a", 6), ("a * b", 24), ("a + 2 * b", 14), ("a / 2", 3), ("(a + b) / 5", 2), ("a - b - 1", 1)],
)
def test_arithmetic(expression: str, value: int) -> None:
    assert evaluate(expression, {"a": 6, "b": 4}) == value


@pytest.mark.parametrize("expression", ["c", "a / b", "a / 0", "a * c"])
def test_what_has_no_whole_value_is_unresolved(expression: str) -> None:
    with pytest.raises(UnresolvedError):
        evaluate(expression, {"a": 6, "b": 4})


_NOT_ARITHMETIC = """a +|a ** b|a // b|-a|a.b|f(a)|a[0]|1.5|'a'|True|a if b else c|a; b|__import__('os')|lambda: a|a % b
|a < b|not a|a and b|a\nb"""


@pytest.mark.parametrize("expression", ["", "((" * 200, *_NOT_ARITHMETIC.split("|")])
def test_only_arithmetic_is_an_expression(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expression|only"):
        parse(expression)


def test_names() -> None:
    assert names_in("heads * head_dim + 2 * heads") == {"heads", "head_dim"}


def test_the_first_alternative_that_is_present_wins() -> None:
    rules = _rules(kv_heads=["num_key_value_heads", "num_attention_heads", 1])
    assert read_dims(rules, {"num_key_value_heads": 2, "num_attention_heads": 8}).values == {"kv_heads": 2}
    assert read_dims(rules, {"num_key_value_heads": None, "num_attention_heads": 8}).values == {"kv_heads": 8}
    assert read_dims(rules, {}).values == {"kv_heads": 1}


def test_dots_reach_into_nested_configs() -> None:
    rules = _rules(hidden=["text_config.hidden_size", "hidden_size"])
    assert read_dims(rules, {"text_config": {"hidden_size": 3}, "hidden_size": 9}).get("hidden") == 3
    assert read_dims(rules, {"text_config": "no table", "hidden_size": 9}).get("hidden") == 9


def test_arithmetic_waits_for_other_dims_in_any_order() -> None:
    rules = _rules(head_dim=["head_dim", "hidden / heads"], heads=["h"], hidden=["hidden_size"])
    assert read_dims(rules, {"h": 4, "hidden_size": 24}).get("head_dim") == 6
    assert read_dims(rules, {"h": 4, "hidden_size": 24, "head_dim": 10}).get("head_dim") == 10
    assert read_dims(rules, {"h": 5, "hidden_size": 24}).get("head_dim") is None


def test_a_later_alternative_does_not_jump_the_queue() -> None:
    rules = _rules(a=["b * 2", 99], b=["c"], c=["key"])
    assert read_dims(rules, {"key": 3}).values == {"a": 6, "b": 3, "c": 3}
    assert read_dims(rules, {}).values == {"a": 99}


def test_dims_that_wait_for_each_other_end() -> None:
    rules = _rules(a=["b + 1"], b=["a + 1"])
    assert read_dims(rules, {}).values == {}


@pytest.mark.parametrize("value", [True, False, 1.5, "12", None, [3], {"x": 1}, -1])
def test_what_is_no_size_counts_as_absent(value: object) -> None:
    assert read_dims(_rules(n=["key", 5]), {"key": value}).get("n") == 5


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"flag": True}, 1),
        ({"flag": False}, 2),
        ({}, 3),
        ({"flag": None}, 3),
    ],
)
def test_flags(config: dict[str, Any], heads: int) -> None:
    rules = _rules(heads=[Alternative(1, when="flag"), Alternative(2, unless="flag"), 3])
    assert read_dims(rules, config).get("heads") == heads


def test_origins_and_order_are_those_of_the_rules() -> None:
    dims = read_dims(_rules(b=["a / 2"], a=["key"], c=["absent"]), {"key": 4})
    assert list(dims.values.items()) == [("b", 2), ("a", 4)]
    assert dims.origins == {"b": "config", "a": "config"}


def test_a_known_expression_is_as_good_as_its_parts() -> None:
    dims = Dims({"heads * head_dim": 40})
    assert dims.get("heads * head_dim") == 40
    assert dims.get("heads") is None


def test_an_explanation_names_what_was_computed_from_what() -> None:
    dims = Dims({"heads": 4, "head_dim": 10})
    assert dims.explain("heads * head_dim") == "heads * head_dim = 40 (head_dim=10, heads=4)"
    assert dims.explain("heads") == "heads = 4"


@given(
    st.recursive(
        st.sampled_from(["a", "b", "3"]),
        lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    )
)
def test_arithmetic_is_pythons(expression: str) -> None:
    values = {"a": 12, "b": 5}
    assert evaluate(expression, values) == eval(expression, {}, values)
