"""Laws that an architecture must keep: subclass :class:`ArchitectureLaws` in your own tests.

    class TestMyFamily(ArchitectureLaws):
        architecture = Path("my_family.toml")
        configs = [{"model_type": "my_family", "hidden_size": 24, ...}]

The laws build tiny models of those configs from transformers, on the meta device, and compare what is
declared with what is there. Choose sizes that all differ, so that no two can be swapped unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import Dims, read_dims
from adaptrix.architecture.layout import role_rows
from adaptrix.architecture.registry import read_architecture
from adaptrix.base.meta_model import Weight, build, config_of, model_classes, need, weights
from adaptrix.delta import LowRank, fuse, split
from adaptrix.tensor import Tensor
from adaptrix.testing.lossless import lossy
from adaptrix.testing.oracle import Oracle


@dataclass(frozen=True, slots=True)
class Case:
    """One model of a family: its name in messages, its dimensions and its weights."""

    name: str
    dims: Dims
    weights: tuple[Weight, ...]


def cases(architecture: Architecture, configs: Iterable[Any], extra_classes: Sequence[str] = ()) -> Iterator[Case]:
    """A case for every config and every model class that transformers has for it."""
    for number, given in enumerate(configs):
        config = config_of(given)
        dims = read_dims(architecture.dims, config.to_dict())
        named = [getattr(need("transformers"), name) for name in extra_classes]
        for model_class in [*model_classes(config), *named]:
            name = f"config {number} {model_class.__name__}"
            yield Case(name, dims, tuple(weights(build(model_class, config))))


def unlocated(architecture: Architecture, case: Case, ignored: Sequence[str] = ()) -> Iterator[str]:
    """The weights of a model that no role claims; an adapter on one of them would be refused."""
    for weight in case.weights:
        if architecture.locate(weight.path) is None and not any(re.fullmatch(p, weight.path) for p in ignored):
            yield f"{case.name}: no role has the path {weight.path} {list(weight.shape)}"


def misshapen(architecture: Architecture, case: Case) -> Iterator[str]:
    """The weights of a model whose real shape or orientation is not the declared one."""
    for weight in case.weights:
        if (found := architecture.match(weight.path)) is None:
            continue
        site, _ = found
        role = architecture.roles[site.role]
        declared = stored_shape(role, site, case.dims)
        if len(declared) != len(weight.shape) or any(
            size not in (None, real) for size, real in zip(declared, weight.shape, strict=True)
        ):
            yield f"{case.name}: {weight.path} is {list(weight.shape)}, role {role.name} declares {list(declared)}"
        if site.layer is not None and None in declared:
            yield f"role {role.name}: only what lies outside the layers may leave a size free"
        if weight.orientation not in (None, role.orientation) and site.expert is None:
            yield f"{case.name}: {weight.path} is {weight.orientation}, role {role.name} says {role.orientation}"


def stored_shape(role: Role, site: Site, dims: Dims) -> tuple[int | None, ...]:
    """The shape as stored that a role declares for one of its sites; None for a size left free."""
    out, inp = (None if size is None else _known(dims, size, role) for size in role.shape(site.part))
    stacked = role.orientation.startswith("experts") and site.expert is None
    turned = role.orientation in ("conv1d", "embedding") or (stacked and role.orientation == "experts_transposed")
    plane = (inp, out) if turned else (out, inp)
    return (_known(dims, role.experts, role), *plane) if stacked and role.experts else plane


def _known(dims: Dims, expression: str, role: Role) -> int:
    value = dims.get(expression)
    assert value is not None, f"role {role.name}: {expression!r} has no value, the config yields {dict(dims.values)}"
    return value


def miscounted(architecture: Architecture, found: Sequence[Case]) -> Iterator[str]:
    """The stacks whose ``depth`` is not the number of their layers: the last layer must be there, none after it."""
    for case in found:
        counts: dict[tuple[str, str], int] = {}
        for site, pattern in filter(None, (architecture.match(weight.path) for weight in case.weights)):
            if site.layer is not None:
                stack = (pattern.partition("{layer}")[0], architecture.roles[site.role].depth)
                counts[stack] = max(counts.get(stack, 0), site.layer + 1)
        for (stack_path, depth), count in counts.items():
            if case.dims.get(depth) != count:
                yield f"{case.name}: {count} layers in {stack_path}, depth {depth!r} says {case.dims.get(depth)}"


def patchy(architecture: Architecture, found: Sequence[Case]) -> Iterator[str]:
    """The roles that some layers of a model lack, without being ``optional``: the completeness check would
    report the gaps of an adapter."""
    for case in found:
        layers: dict[str, set[int]] = {}
        for site in filter(None, (architecture.locate(weight.path) for weight in case.weights)):
            if site.layer is not None:
                layers.setdefault(site.role, set()).add(site.layer)
        for name, seen in layers.items():
            role = architecture.roles[name]
            if not role.optional and len(seen) != case.dims.get(role.depth):
                yield f"{case.name}: role {name} is in layers {sorted(seen)} alone: say optional = true"


def unreal(architecture: Architecture, found: Sequence[Case]) -> Iterator[str]:
    """The roles whose current path is in none of the models (a typo, or a config is missing)."""
    real = {weight.path for case in found for weight in case.weights}
    for role in architecture.roles.values():
        pattern = re.escape(role.paths[0]).replace(r"\{layer\}", r"\d+")
        if not any(re.fullmatch(pattern, path) for path in real):
            yield f"role {role.name}: no model has {role.paths[0]}"


def astray(architecture: Architecture, layers: int = 128, experts: int = 12) -> Iterator[str]:
    """The paths, current and older, under every prefix, that do not lead back to their own site."""
    home = architecture.prefixes[0]
    for pattern, site in _spelled_out(architecture, layers, experts):
        path = pattern.format(layer=site.layer, expert=site.expert)
        spellings = [path]
        if path.startswith(home):
            spellings += [prefix + path.removeprefix(home) for prefix in architecture.prefixes]
        yield from (f"{p}: {architecture.locate(p)}, not {site}" for p in spellings if architecture.locate(p) != site)
    for role in architecture.roles.values():
        site = Site(7 if role.layered else None, role.name)
        if architecture.locate(architecture.path(site)) != site:
            yield f"role {role.name}: path() and locate() disagree"


def _spelled_out(architecture: Architecture, layers: int, experts: int) -> Iterator[tuple[str, Site]]:
    for role in architecture.roles.values():
        patterns: list[tuple[str, str | None]] = [(path, None) for path in role.paths]
        patterns += [(path, part) for part, paths in role.part_paths.items() for path in paths]
        for pattern, part in patterns:
            for layer in range(layers) if "{layer}" in pattern else [None]:
                for expert in range(experts) if "{expert}" in pattern else [None]:
                    yield pattern, Site(layer, role.name, part, expert)


def unfaithful_parts(architecture: Architecture, dims: Dims) -> Iterator[str]:
    """The fused roles whose parts miss a row, share one, or do not survive split and fuse unchanged."""
    for role in architecture.roles.values():
        if not role.parts:
            continue
        rows = role_rows(role, dims)
        assert rows is not None, f"role {role.name}: a part has no size"
        out = _known(dims, role.out or "", role)
        if sorted(np.concatenate(list(rows.values())).tolist()) != list(range(out)):
            yield f"role {role.name}: its parts do not hold each of {out} rows once"
            continue
        B = np.arange(out * 2, dtype=np.float32).reshape(out, 2)
        delta = LowRank(Tensor.of(np.eye(2, 3, dtype=np.float32)), Tensor.of(B), alpha=2.0)
        if not np.array_equal(fuse(split(delta, rows), rows).dense(), delta.dense()):
            yield f"role {role.name}: fuse(split(delta)) is another delta"


class ArchitectureLaws:
    """The laws as tests, for pytest to collect in a subclass.

    - ``architecture``: the record, or the path of its TOML.
    - ``configs``: transformers configs, or mappings with a ``model_type``; together they have all of the family's
      weights and every model type that it claims.
    - ``extra_classes``: names of model classes in transformers that its auto classes do not know.
    - ``ignored``: patterns of weights that no adapter is for.
    - ``unchecked_parts``: fused roles whose order no forward pass of a language model shows.
    """

    architecture: ClassVar[Architecture | Path]
    configs: ClassVar[Sequence[Any]]
    extra_classes: ClassVar[Sequence[str]] = ()
    ignored: ClassVar[Sequence[str]] = ()
    unchecked_parts: ClassVar[Sequence[str]] = ()
    _memory: ClassVar[tuple[Architecture, tuple[Case, ...]] | None] = None

    @classmethod
    def _known(cls) -> tuple[Architecture, tuple[Case, ...]]:
        """The record and its cases, built once a subclass."""
        if "_memory" not in cls.__dict__:
            given = cls.architecture
            record = given if isinstance(given, Architecture) else read_architecture(given)
            cls._memory = (record, tuple(cases(record, cls.configs, cls.extra_classes)))
        assert cls._memory is not None
        return cls._memory

    def test_every_model_type_is_shown(self) -> None:
        record, _ = self._known()
        shown = {config_of(config).model_type for config in self.configs}
        assert shown == set(record.model_types)

    def test_every_weight_has_a_role(self) -> None:
        record, found = self._known()
        _none(line for case in found for line in unlocated(record, case, self.ignored))

    def test_every_role_is_real(self) -> None:
        _none(unreal(*self._known()))

    def test_shapes_and_orientations(self) -> None:
        record, found = self._known()
        _none(line for case in found for line in misshapen(record, case))

    def test_depths(self) -> None:
        _none(miscounted(*self._known()))

    def test_gaps_are_declared(self) -> None:
        """A role that some layers lack says so."""
        _none(patchy(*self._known()))

    def test_paths_lead_back(self) -> None:
        _none(astray(self._known()[0]))

    def test_parts_hold_every_row_once(self) -> None:
        record, found = self._known()
        _none(line for case in found for line in unfaithful_parts(record, case.dims))

    def test_reading_and_writing_loses_nothing(self) -> None:
        """An adapter on every weight, as an injection file and as a PEFT folder, and back."""
        record, found = self._known()
        for case in found:
            with TemporaryDirectory() as folder:
                paths = [weight.path for weight in case.weights]
                _none(f"{case.name}: {line}" for line in lossy(record, case.dims, paths, Path(folder)))

    def test_parts_do_what_they_are_called(self) -> None:
        record, _ = self._known()
        roles = [role for role in record.roles.values() if role.parts and role.name not in self.unchecked_parts]
        for config in map(config_of, self.configs if roles else ()):
            oracle = Oracle(record, config)
            _none(line for role in roles for line in oracle.misnamed(role))


def _none(complaints: Iterable[str]) -> None:
    lines = list(dict.fromkeys(complaints))
    assert not lines, "\n".join(lines)
