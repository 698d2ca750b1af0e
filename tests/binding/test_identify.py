"""Adapters of families that nobody knows."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from adaptrix.adapter import Target
from adaptrix.architecture.dims import Dims
from adaptrix.binding.bind import bind
from adaptrix.binding.identify import Identity, kept_paths
from adaptrix.planning.plan import make_plan
from tests.helpers.make import adapter

STACKS = ["model.layers", "7.model.layers", "a-b.c", "if", "h", "été.blocks", "x y", "1"]


@pytest.mark.parametrize("stack", STACKS)
def test_module_paths_of_any_spelling_have_layers(stack):
    """The slow fuzz found that a stack whose name starts with a digit was taken for arithmetic."""

    made = adapter(4)
    deltas = {Target(t.path.replace("model.layers", stack)): delta for t, delta in made.deltas.items()}
    odd = replace(made, deltas=MappingProxyType(deltas))
    bound = bind(odd, Identity(kept_paths(target.path for target in deltas), Dims(), known=False))
    assert len(bound.deltas) == len(deltas)
    assert list(bound.depths.values()) == [4]
    assert {site.layer for site in make_plan(bound, "middle").sites} == {1, 2}
