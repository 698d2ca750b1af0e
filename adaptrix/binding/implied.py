"""Sizes that the tensors of an adapter imply, by the expressions over dims that a family has for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.delta import Delta


def expressions(site: Site, role: Role) -> tuple[str | None, str | None]:
    """The expressions (out, in) of a site; out is None for a slot that is no part of the role."""
    return role.shape(site.part) if site.part in (None, *role.parts) else (None, role.inp)


def sizes(deltas: Mapping[Site, Delta], architecture: Architecture) -> Mapping[str, Counter[int]]:
    """The sizes that deltas have for every expression, and how many deltas have each; a size of 0 is not known."""
    found: dict[str, Counter[int]] = {}
    for site, delta in deltas.items():
        for expression, size in zip(expressions(site, architecture.roles[site.role]), delta.shape, strict=True):
            if expression and size:
                found.setdefault(expression, Counter())[size] += 1
    return found
