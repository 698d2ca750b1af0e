"""Checks that a checkpoint has every delta that its config promises.

Wherever the family has a module and the config targets it, there must be a delta. A role may have several
spellings (a fused weight or its parts, experts stacked or one by one): a checkpoint uses one of them, and
what it uses in one layer it must use in all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product

from adaptrix.adapter import Adapter
from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import DEEPEST, Dims
from adaptrix.architecture.patterns import tails
from adaptrix.binding.stacks import ranges
from adaptrix.errors import Problem

Position = tuple[int, int | None]

#: more positions (layer, expert) of one module than any model has; no more are checked
_MOST_POSITIONS = 1_000_000
#: the config is asked about so many absent positions; of more, about the first and the last
_SAMPLED = 20_000
_NUMBERED = re.compile(r"_\d+$")


@dataclass
class _Spelling:
    """One path pattern of a role, and the positions (layer, expert) where the checkpoint uses it."""

    pattern: str
    role: Role
    seen: set[Position] = field(default_factory=set)

    @property
    def owner(self) -> str:
        return self.pattern.rpartition(".")[0]

    @property
    def by_expert(self) -> bool:
        return "{expert}" in self.pattern

    def path(self, position: Position) -> str:
        return self.pattern.format(layer=position[0], expert=position[1])


def completeness_problems(
    architecture: Architecture, dims: Dims, depths: Mapping[str, int], adapter: Adapter
) -> Iterator[Problem]:
    """A problem for every role with targeted modules that have no delta, as far as the family is known.

    An adapter that was pruned or generated is not checked: it lacks deltas on purpose.
    """
    if adapter.altered or not architecture.dims:
        return
    spellings, prefixes = _survey(architecture, adapter)
    for spelling in spellings:
        if spelling.role.depth in depths and _expected(spelling, spellings):
            missing = _missing(spelling, spellings, dims, depths, adapter, prefixes)
            if missing:
                yield _problem(spelling, missing)
        elif spelling.role.depth in depths and _is_idle_stack(spelling, spellings):
            names = adapter.provenance.config.get("target_parameters") or ()
            path = _spelled(spelling.path((0, None)), *prefixes)
            if adapter.targeted(path) and not {str(name) for name in names}.isdisjoint(tails(path)):
                yield _passed_over(spelling)


def _survey(architecture: Architecture, adapter: Adapter) -> tuple[list[_Spelling], tuple[str, str]]:
    """Every spelling of every role in layers, with its positions; and the family's prefix and the checkpoint's own.

    A module that the reader has reported has tensors: it is not missing.
    """
    found = {}
    for role in architecture.roles.values():
        for pattern in (*role.paths, *(path for paths in role.part_paths.values() for path in paths)):
            if "{layer}" in pattern and not role.name.startswith("modules."):
                found[pattern] = _Spelling(pattern, role)
    prefixes: Counter[tuple[str, str]] = Counter()
    faulty = [problem.where.partition(" ")[0] for problem in adapter.problems]
    for path in (*(target.path for target in adapter.deltas), *faulty):
        match = architecture.match(path)
        if match is not None and match[1] in found and match[0].layer is not None:
            position = (match[0].layer, match[0].expert)
            found[match[1]].seen.add(position)
            prefixes[_prefixes(found[match[1]].path(position), path)] += 1
    return list(found.values()), prefixes.most_common(1)[0][0] if prefixes else ("", "")


def _prefixes(home: str, path: str) -> tuple[str, str]:
    """The beginnings in which two spellings of one path differ."""
    if home == path:
        return "", ""
    one, other = home.split("."), path.split(".")
    while one and other and one[-1] == other[-1]:
        one.pop()
        other.pop()
    return "".join(f"{step}." for step in one), "".join(f"{step}." for step in other)


def _expected(spelling: _Spelling, spellings: list[_Spelling]) -> bool:
    """True where every layer of the model must have a module of this spelling, as far as the checkpoint shows.

    "Seen" means that the checkpoint has a delta under the spelling in some layer. ``owner`` is the module above, such
    as ``…layers.{layer}.self_attn``.
    """
    # the checkpoint uses it somewhere: q_proj is seen in layer 0, so layer 1 must have it too
    if spelling.seen:
        return True
    # not every layer has such a module, and none is seen: mlp.gate_proj in a Qwen3-MoE whose layers all have experts
    if spelling.role.optional and not spelling.by_expert:
        return False
    beside = any(other.seen for other in spellings if other.owner == spelling.owner)
    # a model has either the one or the other: T5 has wi, or wi_0 and wi_1; wi_1 is expected only where wi_0 is seen
    if any(_alternatives(spelling, other) for other in spellings):
        return any(other.seen and _twins(spelling, other) for other in spellings)
    # another module of the same owner is seen: beside k_proj there must be q_proj, unless the role is seen under
    # another spelling (qkv_proj); beside experts.3.up_proj there must be experts.3.down_proj in any case
    if beside:
        return spelling.by_expert or not any(other.seen for other in spellings if other.role is spelling.role)
    used = any(other.seen for other in spellings if other.role is spelling.role)
    # nothing of the owner is seen: mlp.up_proj in a checkpoint with attention alone. It is expected under the current
    # name, but not where the role is seen elsewhere (an older name), where stacked experts are parameters and no
    # modules, or where it is cross attention, which only some configs have
    elsewhere = used or spelling.role.orientation.startswith("experts") or "cross" in spelling.role.name
    return not elsewhere and not spelling.by_expert and spelling.pattern == spelling.role.paths[0]


def _is_idle_stack(spelling: _Spelling, spellings: list[_Spelling]) -> bool:
    """True for stacked experts of which the checkpoint has nothing."""
    stacked = spelling.role.orientation.startswith("experts") and not spelling.by_expert
    return stacked and not any(other.seen for other in spellings if other.role is spelling.role)


def _alternatives(one: _Spelling, other: _Spelling) -> bool:
    """True where a model has only one of the two: one is the other with a number at its end (``wi``, ``wi_0``)."""
    if one.owner != other.owner or one.pattern == other.pattern:
        return False
    names = {one.pattern, other.pattern}
    stems = {_NUMBERED.sub("", name) for name in names}
    return len(stems) == 1 and bool(stems & names)


def _twins(one: _Spelling, other: _Spelling) -> bool:
    """True where the names differ only in the number at their end: a model with ``wi_0`` has ``wi_1``."""
    stems = [_NUMBERED.sub("", spelling.pattern) for spelling in (one, other)]
    return stems[0] == stems[1] and one.pattern not in stems and other.pattern not in stems


def _missing(
    spelling: _Spelling,
    spellings: list[_Spelling],
    dims: Dims,
    depths: Mapping[str, int],
    adapter: Adapter,
    prefixes: tuple[str, str],
) -> list[Position]:
    """The positions where the config promises a delta and the checkpoint has none."""
    owned = {position for other in spellings if other.owner == spelling.owner for position in other.seen}
    experts: list[int | None] = list(range(_experts(spelling, owned, dims))) if spelling.by_expert else [None]
    positions = islice(product(range(depths[spelling.role.depth]), experts), _MOST_POSITIONS)
    if spelling.role.optional:  # not in every layer, but whole where it is
        layers = {layer for layer, _ in owned} if spelling.by_expert else set()
        positions = islice((position for position in positions if position[0] in layers), _MOST_POSITIONS)
    absent = [position for position in positions if position not in spelling.seen]
    sample = absent if len(absent) <= _SAMPLED else absent[: _SAMPLED // 2] + absent[-_SAMPLED // 2 :]
    promised = [position for position in sample if adapter.targeted(_spelled(spelling.path(position), *prefixes))]
    return absent if len(promised) == len(sample) else promised


def _spelled(path: str, home: str, own: str) -> str:
    """A path of the family as the checkpoint would spell it."""
    return own + path.removeprefix(home) if path.startswith(home) else path


def _experts(spelling: _Spelling, owned: set[Position], dims: Dims) -> int:
    """The number of experts, as stated, else the highest seen plus one."""
    stated = dims.get(spelling.role.experts) if spelling.role.experts else None
    if stated is not None and 0 < stated <= DEEPEST:
        return stated
    return max((expert + 1 for _, expert in owned if expert is not None), default=0)


def _problem(spelling: _Spelling, missing: list[Position]) -> Problem:
    where = f"layers {ranges(sorted({layer for layer, _ in missing}))}"
    experts = sorted({expert for _, expert in missing if expert is not None})
    if experts:
        where = f"experts {ranges(experts)} of {where}"
    name = spelling.pattern.rpartition(".")[2]
    return Problem(
        "adapter-incomplete",
        f"{spelling.role.name} ({name})" if len(spelling.role.paths) > 1 or spelling.by_expert else spelling.role.name,
        f"no tensors for {where}",
        "all that the config targets",
        "The checkpoint is incomplete: fetch it again.",
    )


def _passed_over(spelling: _Spelling) -> Problem:
    """The problem of parameters that the model has, the config targets, and the checkpoint has nothing of."""
    found = "the config targets these parameters, and they have no tensors"
    remedy = (
        "If it was trained where each expert is a module (transformers 4), peft passed over target_parameters: "
        "remove them from the config. Else fetch it again."
    )
    return Problem("adapter-incomplete", spelling.role.name, found, "a delta on each", remedy)
