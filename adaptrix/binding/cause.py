"""The one cause of many problems: a base of another family or size than the one that the adapter was trained on.

A wrong base makes a problem of nearly every delta. Each of them is true, and none says what happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from adaptrix.adapter import Adapter
from adaptrix.architecture import Architecture, Site
from adaptrix.architecture.dims import Dims, names_in
from adaptrix.binding.identify import Identity
from adaptrix.binding.implied import sizes
from adaptrix.binding.stacks import depths_of, stated_depth
from adaptrix.delta import Delta
from adaptrix.errors import Problem
from adaptrix.wording import either

_REMEDY = "Name the base that the adapter was trained on with --base MODEL."
_FEW = 2  # so many problems speak for themselves


def causes(
    identity: Identity, adapter: Adapter, deltas: Mapping[Site, Delta], stated: Dims, problems: Sequence[Problem]
) -> Iterator[Problem]:
    """One problem that says what the others come from, where these are many and a base's config states the dims.

    - ``identity``: by the config of the base; ``stated``: its dims.
    - ``deltas``: those that have a site in its family.
    - ``problems``: of sites, shapes and layers.
    """
    if not identity.base or len(problems) <= _FEW:
        return
    if not deltas:
        yield _other_family(identity, adapter)
        return
    depths = _depths(identity.architecture, adapter, deltas, stated)
    deeper = {stack: (here, there) for stack, (here, there) in depths.items() if here > there}
    if found := _sizes(identity.architecture, deltas, stated) | deeper:
        yield _other_size(identity, found)
    elif depths and any(problem.code == "adapter-incomplete" for problem in problems):
        yield _fewer_layers(identity, depths)


def _other_family(identity: Identity, adapter: Adapter) -> Problem:
    family, others = identity.architecture.family, identity.alternatives[:3]
    whose = f"are those of {either(others)}" if others else f"are none of a {family} model"
    found = f"all {len(adapter.deltas)} modules of the adapter {whose}, and the base is of the family {family}"
    return Problem("site-missing", identity.base, found, "a base of the adapter's family", _REMEDY)


def _sizes(architecture: Architecture, deltas: Mapping[Site, Delta], stated: Dims) -> dict[str, tuple[int, int]]:
    """The adapter's size and the base's of every expression in which most deltas differ from the base."""
    found = {}
    for expression, votes in sizes(deltas, architecture).items():
        size, count = votes.most_common(1)[0]
        known = stated.get(expression)
        if known is not None and known != size and 2 * count > votes.total():
            found[expression] = (size, known)
    return found


def _depths(
    architecture: Architecture, adapter: Adapter, deltas: Mapping[Site, Delta], stated: Dims
) -> dict[str, tuple[int, int]]:
    """The adapter's number of layers and the base's, by stack, where they differ."""
    found = {}
    for stack, seen in depths_of(deltas, architecture, Dims(), adapter).items():
        known = stated_depth(stack, stated, adapter)
        if known is not None and known != seen:
            found[stack] = (seen, known)
    return found


def _other_size(identity: Identity, found: Mapping[str, tuple[int, int]]) -> Problem:
    said = "; ".join(f"{name} {here}, the base has {there}" for name, (here, there) in found.items())
    found_here = f"{said}: {_what(identity.architecture.family, found)}"
    return Problem("shape", identity.base, found_here, "a base of the adapter's sizes", _REMEDY)


def _what(family: str, found: Mapping[str, tuple[int, int]]) -> str:
    """The difference between two models, by the dims that differ."""
    names = {name for expression in found for name in names_in(expression)}
    if names == {"vocab"}:
        return "a base with another vocabulary"
    if names <= {"heads", "kv_heads", "head_dim"}:
        return f"a {family} with other attention heads"
    return f"another size of {family}"


def _fewer_layers(identity: Identity, found: Mapping[str, tuple[int, int]]) -> Problem:
    said = "; ".join(f"{name} {here}, the base has {there}" for name, (here, there) in found.items())
    which = f"another size of {identity.architecture.family}, or an adapter that was cut off"
    remedy = f"{_REMEDY[:-1]}, or fetch the adapter again."
    return Problem("adapter-incomplete", identity.base, f"{said}: {which}", "a base of as many layers", remedy)
