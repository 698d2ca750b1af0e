"""Several adapters side by side, by site, however their checkpoints spell the modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from adaptrix.adapter import Target
from adaptrix.algebra.operands import Operand
from adaptrix.architecture import Architecture, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import role_rows
from adaptrix.binding.bind import BoundAdapter, expected_shape
from adaptrix.binding.identify import Identity
from adaptrix.binding.stored_weights import is_stored
from adaptrix.delta import LowRank, fuse, straightened
from adaptrix.errors import Problem, RefusedError

Row = tuple[LowRank | None, ...]
#: the layer and the role that the parts of a fused weight, or its experts, share
StackPosition = tuple[int | None, str]


@dataclass(frozen=True)
class Alignment:
    """The deltas of several operands by site.

    ``identity``: their common family and dims. ``rows``: by site, in order, the delta of each operand, None where it
    has none. ``targets``: by site, the module path to write. ``respelled``: the checkpoints name modules by different
    prefixes, so that the targets are spelled as the family does.
    """

    identity: Identity
    rows: Mapping[Site, Row]
    targets: Mapping[Site, Target]
    respelled: bool


def align(operands: Sequence[Operand]) -> Alignment:
    """The operands by site. A weight that one changes whole and another by parts is taken whole.

    Raises :class:`RefusedError` with every reason why they are not of one model.
    """
    architecture, dims = _common(operands)
    columns = _columns(operands, architecture, dims)
    sites = sorted({site for column in columns for site in column}, key=lambda site: site.order)
    rows = {site: tuple(column.get(site) for column in columns) for site in sites}
    if problems := list(_stored_problems(operands, architecture)):
        raise RefusedError(problems)
    if problems := [*_shape_problems(rows, operands, architecture), *_expert_problems(sites)]:
        raise RefusedError(problems)
    spelled = {site: t for o in reversed(operands) for site, t in o.bound.targets.items()}
    homes = {site: _home(spelled[site], architecture) for site in sites}
    every = {_start(_home(target, architecture), target) for o in operands for target in o.bound.targets.values()}
    respelled = len(every) > 1
    targets = homes if respelled else {site: spelled[site] for site in sites}
    known = bool(architecture.dims)
    identity = Identity(architecture, dims, known)
    return Alignment(identity, MappingProxyType(rows), MappingProxyType(targets), respelled)


def _common(operands: Sequence[Operand]) -> tuple[Architecture, Dims]:
    """The family of all operands with every module that any of them has, and all that is known of its dims."""
    families = [operand.bound.architecture.family for operand in operands]
    if len(set(families)) > 1:
        found = ", ".join(f"{operand.name} is {family}" for operand, family in zip(operands, families, strict=True))
        remedy = "Name the base that they were all trained on with --base MODEL."
        raise RefusedError(Problem("base-mismatch", "adapters", found, "one family of models", remedy))
    first = operands[0].bound.architecture
    roles = {name: role for operand in operands for name, role in operand.bound.architecture.roles.items()}
    values: dict[str, int] = {}
    origins: dict[str, str] = {}
    for dims in sorted(
        (operand.bound.dims for operand in operands), key=lambda dims: "config" in dims.origins.values()
    ):
        values |= dims.values
        origins |= dims.origins
    return replace(first, roles=MappingProxyType(roles)), Dims(MappingProxyType(values), MappingProxyType(origins))


def _columns(operands: Sequence[Operand], architecture: Architecture, dims: Dims) -> list[dict[Site, LowRank]]:
    """Each operand's deltas, straight, with the parts of a weight as one where another operand has it whole."""
    whole = {_stack_position(s) for o in operands for s in o.deltas if s.part is None}
    columns, problems = [], list[Problem]()
    for operand in operands:
        column: dict[Site, LowRank] = {}
        parts: dict[Site, dict[str, LowRank]] = {}
        for site, delta in operand.deltas.items():
            if site.part is not None and site.expert is None and _stack_position(site) in whole:
                parts.setdefault(replace(site, part=None), {})[site.part] = delta
            else:
                column[site] = straightened(delta)
        for site, group in parts.items():
            rows = role_rows(architecture.roles[site.role], dims)
            try:
                column[site] = fuse(group, {} if rows is None else rows)
            except (ValueError, KeyError) as error:
                found = f"its parts cannot be made one ({error})"
                problems.append(Problem("part", f"{operand.name}, {site}", found, "the whole weight, as others have"))
        columns.append(column)
    if problems:
        raise RefusedError(problems)
    return columns


def _stack_position(site: Site) -> StackPosition:
    return (site.layer, site.role)


def _shape_problems(
    rows: Mapping[Site, Row], operands: Sequence[Operand], architecture: Architecture
) -> Iterator[Problem]:
    """A problem for deltas of different shapes, and for those that cannot be in the base of another operand."""
    for site, row in rows.items():
        shapes = [_shape(site, delta, o.bound, architecture) for o, delta in zip(operands, row, strict=True)]
        known = [{size for size in axis if size is not None} for axis in zip(*shapes, strict=True)]
        experts = {delta.experts for delta in row if delta is not None}
        if any(len(axis) > 1 for axis in known) or len(experts) > 1:
            named = zip(operands, shapes, strict=True)
            found = ", ".join(f"{out or '?'} × {inp or '?'} in {operand.name}" for operand, (out, inp) in named)
            yield Problem("shape", str(site), found, "one shape", "The adapters belong to models of different sizes.")
        for operand in operands:
            depth = operand.bound.dims.values.get(architecture.roles[site.role].depth)
            if site.layer is not None and depth is not None and site.layer >= depth:
                yield Problem("shape", str(site), f"the base of {operand.name} has {depth} layers", "one depth")


def _stored_problems(operands: Sequence[Operand], architecture: Architecture) -> Iterator[Problem]:
    """A problem for a weight that one operand changes as it is stored and another as ``[out, in]``, if these differ."""
    seen: dict[Site, dict[bool, str]] = {}
    for operand in operands:
        for site, target in operand.bound.targets.items():
            stored = is_stored(operand.bound.adapter, target.path)
            seen.setdefault(site, {}).setdefault(stored, operand.name)
    for site, names in seen.items():
        role = architecture.roles[site.role]
        if len(names) > 1 and (role.orientation != "linear" or role.name.startswith("modules.")):
            found = f"{names[True]} changes the parameter as it is stored, {names[False]} the module's ΔW"
            remedy = "Attach the first one, and write session.adapter(name) as PEFT: it is of modules then."
            yield Problem("part", str(site), found, "one of them, since the axes may differ", remedy)


def _shape(
    site: Site, delta: LowRank | None, bound: BoundAdapter, architecture: Architecture
) -> tuple[int | None, int | None]:
    return delta.shape if delta is not None else expected_shape(site, architecture.roles[site.role], bound.dims)


def _expert_problems(sites: Sequence[Site]) -> Iterator[Problem]:
    """A problem for experts that one adapter changes as a stacked weight and another one by one."""
    apart = {_stack_position(site) for site in sites if site.expert is not None}
    for site in sites:
        if site.expert is None and _stack_position(site) in apart:
            found, expected = "one adapter stacks its experts, another has them one by one", "one spelling"
            yield Problem("part", str(site), found, expected)


def _home(target: Target, architecture: Architecture) -> Target:
    """A target as the family spells it under its own prefix."""
    found = architecture.match(target.path)
    if found is None:
        return target
    site, pattern = found
    return replace(target, path=pattern.format(layer=site.layer, expert=site.expert))


def _start(home: Target, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The beginnings in which two spellings of one path differ."""
    one, other = home.path.split("."), target.path.split(".")
    while one and other and one[-1] == other[-1]:
        one.pop()
        other.pop()
    return tuple(one), tuple(other)
