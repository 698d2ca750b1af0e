"""The sites and stacks of an injection file's plan, as the model at hand has them.

A file that is written without a base may take its modules for those of another family: the same paths then have other
sites, and their layers another stack.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptrix.adapter import Recorded
from adaptrix.architecture import Site
from adaptrix.binding.bind import BoundAdapter


def sites_here(bound: BoundAdapter, recorded: Recorded) -> dict[str, Site]:
    """The sites of the deltas by name, and by the name that the file has for the same module."""
    theirs = {
        recorded.sites[bound.targets[site]]: site for site in bound.deltas if bound.targets[site] in recorded.sites
    }
    return {str(site): site for site in bound.deltas} | theirs


def layers_here(bound: BoundAdapter, recorded: Recorded) -> Mapping[str, tuple[int, ...]]:
    """The layers of each stack. Where a file of another family has only one, it is that of every module of it."""
    stacks = {role.depth for role in bound.architecture.roles.values()}
    own = recorded.family == bound.architecture.family or recorded.layers.keys() <= stacks
    if own or len(recorded.layers) != 1 or _is_lost(bound, recorded):
        return recorded.layers
    (layers,) = recorded.layers.values()
    return dict.fromkeys(bound.depths, layers)


def _is_lost(bound: BoundAdapter, recorded: Recorded) -> bool:
    """True where the file's family is that of a plugin which is not installed: its stacks are not known here."""
    lost = (problem for problem in bound.problems if problem.code == "architecture-unknown")
    return any(repr(recorded.family) in problem.found for problem in lost)
