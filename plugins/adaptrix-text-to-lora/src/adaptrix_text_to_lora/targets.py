"""The modules of a base that a hypernetwork makes deltas for, and their sizes there.

A module is asked for by its role (``q``), by its part in a fused weight (GPT-2's ``q`` of ``qkv``), or as a
checkpoint names it (``q_proj``), and found in the architecture registry; dimensions are those of config.json. A name
of Llama's that the base does not have means the role that it has there: GPT-2's ``q_proj`` is ``q`` of ``c_attn``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from adaptrix import Architecture, Problem, RefusedError
from adaptrix.extend import Dims, Pipeline, Role, RowIndex, family_of, role_rows
from adaptrix_text_to_lora.shape import Module, Shape, Variant

DEFAULT = ("q", "v")
#: whose spelling is meant where a checkpoint names modules, and no base says which family's they are
_PLAINEST = "llama"


@dataclass(frozen=True)
class TargetModule:
    """A type of module in a family: its role, for a fused weight the part, and the rows of every part."""

    name: str
    role: Role
    part: str | None = None
    rows: Mapping[str, RowIndex] = field(default_factory=lambda: MappingProxyType({}))

    def path(self, layer: int) -> str:
        """The module's path in a layer."""
        return self.role.paths[0].format(layer=layer)


@dataclass(frozen=True)
class Base:
    """A base as far as its config.json tells: the model's name, its family and its dimensions."""

    name: str
    architecture: Architecture
    dims: Dims
    plainest: Architecture

    @classmethod
    def read(cls, uri: str, pipeline: Pipeline) -> Base:
        """The base of a uri. Raises :class:`AdaptrixError` for one out of reach, or of unknown family."""
        return cls._of_config(uri, pipeline.base_config(uri), pipeline)

    @classmethod
    def of_model(cls, model: Any) -> Base:
        """The base that a live model is. Raises :class:`RefusedError` for one of unknown family."""
        return cls._of_config(type(model).__name__, model.config.to_dict(), Pipeline())

    @classmethod
    def _of_config(cls, uri: str, config: Mapping[str, Any], pipeline: Pipeline) -> Base:
        found = family_of(config, pipeline.catalog.architectures, uri)
        return cls(uri, found.architecture, found.dims, _plainest(pipeline.catalog.architectures))

    def find_modules(self, names: Iterable[str]) -> tuple[TargetModule, ...]:
        """Its modules of these names. Raises :class:`RefusedError` with every name that it has no module for."""
        found = [self._find(name) for name in names]
        problems = [target for target in found if isinstance(target, Problem)]
        target_modules = [target for target in found if isinstance(target, TargetModule)]
        problems += _overlaps(target_modules)
        if problems:
            raise RefusedError(problems)
        return tuple(self._with_rows(target) for target in target_modules)

    def borrowed(self, names: Iterable[str]) -> tuple[Problem, ...]:
        """Notes on the names that only Llama has, and on the role that is meant by them here."""
        return tuple(
            Problem("targets", f"{self.name} {name}", f"{self.architecture.family} has none: {_meant(target)} is meant",
                    severity="note")
            for name in names
            if isinstance(find(name, self.architecture), Problem)
            and isinstance(target := self._find(name), TargetModule)
        )  # fmt: skip

    def _find(self, name: str) -> TargetModule | Problem:
        target = find(name, self.architecture)
        elsewhere = _by_path(name, self.plainest) if isinstance(target, Problem) else None
        here = find(elsewhere.role.name, self.architecture) if elsewhere else None
        return TargetModule(name, here.role, here.part) if isinstance(here, TargetModule) else target

    def modules(self, target_modules: Sequence[TargetModule]) -> tuple[Module, ...]:
        """Their sizes here. Raises :class:`RefusedError` for what config.json does not say."""
        sizes = [(target, *map(self._size, reversed(target.role.shape(target.part)))) for target in target_modules]
        if problems := [self._unsized(target.name) for target, *both in sizes if None in both]:
            raise RefusedError(problems)
        return tuple(Module(target.name, inp, out) for target, inp, out in sizes if inp is not None and out is not None)

    def layers(self, target_modules: Sequence[TargetModule]) -> int:
        """The number of layers, which all must share. Raises :class:`RefusedError`."""
        stacks = sorted({target.role.depth for target in target_modules})
        found = self.dims.get(stacks[0]) if len(stacks) == 1 else None
        if found is None:
            said = (
                f"its modules are in {' and '.join(stacks)}" if len(stacks) > 1 else "it does not say how many layers"
            )
            raise RefusedError(Problem("targets", self.name, said, "modules of one stack of layers, of known depth"))
        return found

    def _size(self, expression: str | None) -> int | None:
        return None if expression is None else self.dims.get(expression)

    def _unsized(self, name: str) -> Problem:
        return Problem("base-config", f"{self.name} config.json", f"it does not say how large {name} is")

    def _with_rows(self, target: TargetModule) -> TargetModule:
        if target.part is None:
            return target
        rows = role_rows(target.role, self.dims)
        if rows is None:
            raise RefusedError(self._unsized(target.role.name))
        return TargetModule(target.name, target.role, target.part, MappingProxyType(rows))


def shape_for(
    base: str, variant: Variant, embedding: int, *, roles: Sequence[str] = DEFAULT, rank: int = 8, latent: int = 128
) -> Shape:
    """The shape of a hypernetwork for a base, from its config.json alone. Raises :class:`AdaptrixError`.

    ``roles``: the targets in the order of their type embeddings; ``embedding``: E of the text encoder.
    """
    found = Base.read(base, Pipeline())
    target_modules = found.find_modules(roles)
    return Shape(variant, found.modules(target_modules), found.layers(target_modules), rank, embedding, latent)


def require_fit(shape: Shape, base: Base, target_modules: Sequence[TargetModule]) -> None:
    """Raises :class:`RefusedError` with every dimension in which a checkpoint and a base differ."""
    here = {module.name: module for module in base.modules(target_modules)}
    pairs = [("layers", shape.layers, base.layers(target_modules))]
    for module in shape.modules:
        pairs += [(f"{module.name} in", module.inp, here[module.name].inp)]
        pairs += [(f"{module.name} out", module.out, here[module.name].out)]
    remedy = "The checkpoint was made for another base."
    if problems := [
        Problem("base-mismatch", f"checkpoint {what}", f"{ours}", f"{theirs}, as {base.name} has", remedy)
        for what, ours, theirs in pairs
        if ours != theirs
    ]:
        raise RefusedError(problems)


def without_base(names: Sequence[str], architectures: Iterable[Architecture]) -> tuple[TargetModule, ...]:
    """The places of modules whose base is not there, spelled as Llama, Mistral, Gemma and Qwen spell them.

    Raises :class:`RefusedError` for modules that these do not have.
    """
    plainest = _plainest(architectures)
    target_modules = [target for name in names if (target := _by_path(name, plainest)) is not None]
    if len(target_modules) == len(names):
        return tuple(target_modules)
    found = f"{_PLAINEST} has no modules called {', '.join(names)}, and no base is named that has them"
    remedy = "Name the base with --base MODEL: only its config.json is read."
    raise RefusedError(Problem("base-needed", "base", found, remedy=remedy))


def _plainest(architectures: Iterable[Architecture]) -> Architecture:
    return next(architecture for architecture in architectures if architecture.family == _PLAINEST)


def _meant(target: TargetModule) -> str:
    path = target.role.paths[0]
    return f"part {target.part} of {path}" if target.part else path


def find(name: str, architecture: Architecture) -> TargetModule | Problem:
    """The place of a name in a family, or what is wrong with it."""
    target = next(_candidates(name, architecture), None)
    if target is None:
        served = ", ".join(dict.fromkeys(_served(architecture)))
        return Problem("targets", architecture.family, f"it has no {name}", f"one of {served}")
    if fault := _fault(target.role):
        return Problem(
            "targets", f"{architecture.family} {name}", f"{target.role.name} {fault}", "a module in every layer"
        )
    return target


def _candidates(name: str, architecture: Architecture) -> Iterator[TargetModule]:
    """By role, as part of a fused role, as the decoder's of two stacks, by the end of the module's path."""
    roles = architecture.roles
    if name in roles:
        yield TargetModule(name, roles[name])
    yield from (TargetModule(name, role, name) for role in roles.values() if name in role.parts and role.layered)
    if f"decoder_{name}" in roles:
        yield TargetModule(name, roles[f"decoder_{name}"])
    if (target := _by_path(name, architecture)) is not None:
        yield target


def _by_path(name: str, architecture: Architecture) -> TargetModule | None:
    ends = (role for role in architecture.roles.values() if role.paths[0].rpartition(".")[2] == name)
    return next((TargetModule(name, role) for role in ends if not _fault(role)), None)


def _fault(role: Role) -> str:
    """The reason why no delta can be made for a role in every layer; empty where one can."""
    if not role.layered:
        return "is outside the layers"
    if role.orientation not in ("linear", "conv1d") or "{expert}" in role.paths[0]:
        return f"is no plain matrix ({role.orientation}, of experts)"
    return "is not in every layer" if role.optional else ""


def _served(architecture: Architecture) -> Iterator[str]:
    for role in architecture.roles.values():
        if not _fault(role):
            yield from (role.name, *role.parts)


def _overlaps(target_modules: Sequence[TargetModule]) -> Iterator[Problem]:
    """Names that mean the same weight, or a weight and a part of it."""
    seen: dict[tuple[str, str | None], str] = {}
    for target in target_modules:
        wholes = {part for role, part in seen if role == target.role.name}
        if target.part in wholes or None in wholes or (target.part is None and wholes):
            yield Problem("targets", target.name, f"{target.role.name} is named twice", "each weight once")
        seen[target.role.name, target.part] = target.name
