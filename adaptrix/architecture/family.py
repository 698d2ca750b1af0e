"""Architectures as data: the paths of a family's weights, and their shapes.

An :class:`Architecture` translates both ways between a module path (``model.layers.3.self_attn.q_proj``)
and a :class:`Site` (layer 3, role ``q``), and states each role's shape in the family's dimensions.
``registry/README.md`` has the schema of the TOML files that these values are read from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from adaptrix.architecture.dims import Rule

if TYPE_CHECKING:
    from adaptrix.architecture.dialect import Dialect

Orientation = Literal["linear", "conv1d", "embedding", "experts", "experts_transposed"]
Layout = Literal["contiguous", "grouped"]

#: paths whose site a family remembers; those of a larger model beyond it are looked up each time
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Site:
    """The weight that a delta changes, by what it does: independent of the model's own names.

    ``layer``: counted from 0 in its stack, None outside the layers. ``role``: a key of the family's roles. ``part``: of
    a fused weight, None for the whole. ``expert``: counted from 0, None where experts are stacked or there are none.
    """

    layer: int | None
    role: str
    part: str | None = None
    expert: int | None = None

    def __str__(self) -> str:
        """The name in an injection file: ``layers.3.qkv.q.e5``; a role outside the layers is bare.

        A module that no family knows keeps its path: ``modules.decoder.blocks.3.wq``.
        """
        if self.role.startswith("modules."):
            return self.role.replace("{layer}", str(self.layer)) + ("" if self.part is None else f".{self.part}")
        layer = "" if self.layer is None else f"layers.{self.layer}."
        part = "" if self.part is None else f".{self.part}"
        expert = "" if self.expert is None else f".e{self.expert}"
        return f"{layer}{self.role}{part}{expert}"

    @property
    def order(self) -> tuple[int, str, str, int]:
        """A sort key: by layer (those outside the layers last), role, part, expert."""
        layer = 1 << 30 if self.layer is None else self.layer
        return (layer, self.role, self.part or "", -1 if self.expert is None else self.expert)


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of weight: its paths, its shape and how it is stored. Sizes are expressions over the family's dimensions.

    - ``name``: the field's own word for it, such as ``q`` or ``gate_up``.
    - ``paths``: module paths with ``{layer}`` (and ``{expert}``) in them, today's name first, older ones after it.
    - ``inp``, ``out``: the columns and rows of ΔW ``[out, in]``; None where they are not fixed (a classifier's labels).
    - ``orientation``: how the module stores the weight: ``linear`` is ``[out, in]``, ``conv1d`` its transpose.
    - ``parts``: for a fused weight, its parts in order and each one's rows.
    - ``layout``: how the parts lie among the rows; see :mod:`adaptrix.architecture.layout`.
    - ``groups``: for the grouped layout, the number of groups of (q rows, k rows, v rows), one after another.
    - ``experts``: the number of experts that a stacked weight holds.
    - ``part_paths``: module paths of a part, where a version of the model has it as a module of its own.
    - ``depth``: the dimension that counts the layers of its stack.
    - ``optional``: not every layer has it.
    - ``note``: what ``derive`` is not sure of; empty for a role read from a TOML file.
    """

    name: str
    paths: tuple[str, ...]
    inp: str | None = None
    out: str | None = None
    orientation: Orientation = "linear"
    parts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    layout: Layout = "contiguous"
    groups: str | None = None
    experts: str | None = None
    part_paths: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    depth: str = "layers"
    optional: bool = False
    note: str = field(default="", compare=False)

    @property
    def layered(self) -> bool:
        return "{layer}" in self.paths[0]

    def shape(self, part: str | None) -> tuple[str | None, str | None]:
        """The expressions (out, in) of the whole weight or of one of its parts."""
        return (self.out if part is None else self.parts[part], self.inp)


@dataclass(frozen=True)
class Architecture:
    """One family of models.

    ``origin`` says which distribution or file it was read from; ``dialects``: the names that formats have for its
    modules, by format.
    """

    family: str
    model_types: tuple[str, ...]
    dims: Mapping[str, Rule]
    roles: Mapping[str, Role]
    prefixes: tuple[str, ...] = ("",)
    origin: str = ""
    dialects: Mapping[str, Dialect] = field(default_factory=lambda: MappingProxyType({}))

    def locate(self, path: str) -> Site | None:
        """The site of a module path, None where the family has no such module."""
        found = self.match(path)
        return found[0] if found else None

    def match(self, path: str) -> tuple[Site, str] | None:
        """The site of a module path and the path pattern that matched it; cached, as adapters share paths."""
        known = self._known
        if path not in known and len(known) < _REMEMBERED:
            known[path] = self._find(path)
        return known[path] if path in known else self._find(path)

    def _find(self, path: str) -> tuple[Site, str] | None:
        for candidate in self._spellings(path):
            skeleton, numbers = _skeleton(candidate)
            for pattern, slots, role, part in self._patterns.get(skeleton, ()):
                if (found := _fill(slots, numbers)) is not None:
                    return Site(found.get("{layer}"), role, part, found.get("{expert}")), pattern
        return None

    def path(self, site: Site) -> str:
        """The current module path of a site's whole weight."""
        return self.roles[site.role].paths[0].format(layer=site.layer, expert=site.expert)

    def _spellings(self, path: str) -> list[str]:
        """The path under the family's own prefix, for each prefix that it may have been saved with."""
        home = self.prefixes[0]
        others = (home + path.removeprefix(p) for p in self.prefixes[1:] if path.startswith(p))
        return [path, *others]

    @cached_property
    def _known(self) -> dict[str, tuple[Site, str] | None]:
        return {}

    @cached_property
    def _patterns(self) -> Mapping[str, list[tuple[str, tuple[str, ...], str, str | None]]]:
        """Path patterns by skeleton: pattern, its slots, role and part."""
        found: dict[str, list[tuple[str, tuple[str, ...], str, str | None]]] = {}
        for role in self.roles.values():
            whole = [(path, None) for path in role.paths]
            parts = [(path, part) for part, paths in role.part_paths.items() for path in paths]
            for path, part in whole + parts:
                skeleton, slots = _skeleton(path)
                found.setdefault(skeleton, []).append((path, slots, role.name, part))
        return found


def _skeleton(path: str) -> tuple[str, tuple[str, ...]]:
    """A path with ``{}`` for each number or slot, and these in order. Steps are compared whole: 3 never matches 13."""
    steps = path.split(".")
    holes = [step.isdecimal() or step in ("{layer}", "{expert}") for step in steps]
    skeleton = ".".join("{}" if hole else step for step, hole in zip(steps, holes, strict=True))
    return skeleton, tuple(step for step, hole in zip(steps, holes, strict=True) if hole)


def _fill(slots: tuple[str, ...], numbers: tuple[str, ...]) -> dict[str, int] | None:
    """The number at each slot; None where a number that the pattern itself has is another one."""
    found = {}
    for slot, number in zip(slots, numbers, strict=True):
        if slot.startswith("{"):
            if len(number) > 6 or not number.isascii() or str(int(number)) != number:
                return None
            found[slot] = int(number)
        elif slot != number:
            return None
    return found
