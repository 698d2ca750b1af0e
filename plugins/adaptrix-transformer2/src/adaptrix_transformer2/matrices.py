"""The matrices that an expert changes: those of a model's MLPs, found by their roles in the architecture registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from adaptrix import Architecture, Problem, RefusedError, Site, UsageError
from adaptrix import Tensor as Stored
from adaptrix.extend import (
    FLOATS,
    Identity,
    Pipeline,
    Role,
    as_stored,
    base_model_of,
    family_of,
    fetch_base,
    reached,
    refuse,
    some,
    storable,
)

#: the roles of an MLP's matrices, in the order in which the published artifacts list those of a layer
ROLES = ("gate", "gate_up", "up", "gated_up", "down")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix by its module's path and its site; ``stored`` gives its tensor, ``[in, out]`` where ``transposed``."""

    path: str
    site: Site
    transposed: bool
    stored: Callable[[], Stored]


@dataclass(frozen=True, eq=False)
class Matrices:
    """Those of one base, layer by layer: its name (where it has one), what identified it, and each matrix."""

    base: str | None
    identity: Identity
    matrices: tuple[Matrix, ...]


def of_model(model: nn.Module, layers: Collection[int] | None = None) -> Matrices:
    """The matrices of a model in memory, in some layers or in all. Raises :class:`AdaptrixError` with every problem."""
    kind = type(model).__name__
    identity = family_of(base_model_of(model).config, Pipeline().catalog.architectures, kind)
    modules = {one.name: one.module for one in reached(model, identity.architecture).values()}
    problems = [problem for name in _paths(modules, identity, layers) for problem in _faults(name, modules[name])]
    if problems:
        raise RefusedError(problems)
    base = str(getattr(model, "name_or_path", "") or "") or None
    stored = {name: _reader(module) for name, module in modules.items()}
    return _matrices(base, identity, stored, layers, kind)


def of_base(uri: str, pipeline: Pipeline, layers: Collection[int] | None = None) -> Matrices:
    """The matrices of a base on this disk or on the Hub; its weights stay in their files until they are asked for.

    Raises :class:`AdaptrixError` with every problem.
    """
    base = fetch_base(uri, pipeline)
    identity = family_of(base.config, pipeline.catalog.architectures, uri)
    tensors = {name.removesuffix(".weight"): tensor for name, tensor in base.tensors().items()}
    faults = [
        Problem("dtype", f"{uri} {path}", f"its dtype is {tensors[path].dtype}", "a floating-point dtype")
        for path in _paths(tensors, identity, layers)
        if tensors[path].dtype not in FLOATS
    ]
    if faults:
        raise RefusedError(faults)
    return _matrices(uri, identity, {path: partial(_itself, tensor) for path, tensor in tensors.items()}, layers, uri)


def _itself(tensor: Stored) -> Stored:
    return tensor


def _matrices(
    base: str | None,
    identity: Identity,
    stored: Mapping[str, Callable[[], Stored]],
    layers: Collection[int] | None,
    where: str,
) -> Matrices:
    found = tuple(_found(path, stored[path], identity.architecture) for path in _paths(stored, identity, layers))
    if layers is not None and (absent := set(layers) - {matrix.site.layer for matrix in found}):
        said = f"it has no MLP in layers {some(map(str, sorted(absent)))}"
        raise UsageError(Problem("option", where, said, "layers of the model"))
    if not found:
        raise _without(where, identity.architecture)
    return Matrices(base, identity, found)


def _found(path: str, stored: Callable[[], Stored], architecture: Architecture) -> Matrix:
    site = architecture.locate(path)
    assert site is not None  # _paths saw to it
    return Matrix(path, site, architecture.roles[site.role].orientation == "conv1d", stored)


def _paths(names: Collection[str], identity: Identity, layers: Collection[int] | None) -> list[str]:
    """Those among some module paths that are an MLP's matrices, layer by layer."""
    architecture, keyed = identity.architecture, list[tuple[tuple[str, int, int], str]]()
    for name in names:
        site = architecture.locate(name)
        if site is None or site.layer is None or site.part is not None:
            continue
        role = architecture.roles[site.role]
        if _is_mlp(role) and (layers is None or site.layer in layers):
            keyed.append(((role.depth, site.layer, ROLES.index(_bare(role.name))), name))
    return [name for _, name in sorted(keyed)]


def _bare(role: str) -> str:
    """A role's name without the stack that it is in."""
    return role.removeprefix("encoder_").removeprefix("decoder_")


def _is_mlp(role: Role) -> bool:
    return _bare(role.name) in ROLES and role.orientation in ("linear", "conv1d")


def _without(where: str, architecture: Architecture) -> RefusedError:
    stacked = [role.name for role in architecture.roles.values() if role.orientation.startswith("experts")]
    found = f"{architecture.family} has no MLP whose matrices are modules of their own"
    if stacked:
        found += f", only stacked experts ({some(stacked)})"
    return refuse("module-missing", where, found, f"modules of the roles {', '.join(ROLES)}")


def _faults(name: str, module: nn.Module) -> Iterator[Problem]:
    """Problems that keep a module's weight from being decomposed."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not storable(weight.dtype):
        kind = f"a {type(module).__name__}" + ("" if weight is None else f" in {weight.dtype}")
        yield Problem("quantised", name, kind, "a matrix of floating-point numbers", "Load the model unquantised.")
    elif weight.is_meta:
        yield Problem(
            "weights-not-loaded", name, "it has no weights (meta device)", "a loaded model", "Load its weights first."
        )


def _reader(module: nn.Module) -> Callable[[], Stored]:
    def read() -> Stored:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        return as_stored(weight)

    return read
