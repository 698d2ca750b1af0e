"""The changes of a base by (IA)³ deltas: the weight of each multiplied, and its bias where outputs are."""

from __future__ import annotations

from collections.abc import Iterator

from adaptrix.architecture import Site
from adaptrix.base.sites import BaseSites
from adaptrix.delta import Scale
from adaptrix.errors import Problem
from adaptrix.merging.tensor_change import ScaleTerm, TensorChange


def scale_changes(
    site: Site, delta: Scale, gain: float, sites: BaseSites, target: str
) -> Iterator[tuple[str, TensorChange | Problem]]:
    """The change of each tensor by its name, or the problem against it; none where the files have no such weight."""
    term = ScaleTerm(site, delta, gain)
    for name in sites.whole(site):
        turned = sites.scaled_turned(name, site, target, delta.shape)
        if isinstance(turned, Problem):
            yield name, turned
        else:
            yield name, TensorChange(scaled=term, turned=turned)
    for name in () if delta.inputs else sites.whole_biases(site):
        yield name, TensorChange(scaled=term, bias=True)
