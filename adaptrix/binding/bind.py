"""Binding of an adapter to an architecture: deltas by site, every shape checked, all problems at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from adaptrix.adapter import Adapter, Target
from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.binding.cause import causes
from adaptrix.binding.completeness import completeness_problems
from adaptrix.binding.experts import oriented
from adaptrix.binding.extras import extra_problems, resized_vocabulary
from adaptrix.binding.identify import Identity
from adaptrix.binding.implied import expressions, sizes
from adaptrix.binding.sizes import with_sizes
from adaptrix.binding.stacks import depths_of, layer_problems
from adaptrix.delta import Delta
from adaptrix.errors import Problem, RefusedError
from adaptrix.tensor import FLOATS

if TYPE_CHECKING:
    from adaptrix.schemas.shared import AdapterJSON

Shape = tuple[int | None, int | None]


@dataclass(frozen=True)
class BoundAdapter:
    """An adapter's deltas by site.

    - ``adapter``: as it was read.
    - ``architecture``: the family.
    - ``dims``: as the config states them, else as the tensors imply them.
    - ``deltas``, ``targets``: by site, in order; a target is the module path in the checkpoint.
    - ``depths``: the layers of each stack, by the name of the dimension that counts them; where no config states it,
      the highest layer seen plus one.
    - ``problems``: of reading, of the family, and of shapes and completeness.
    - ``tied``: as the identity has it.
    """

    adapter: Adapter
    architecture: Architecture
    dims: Dims
    deltas: Mapping[Site, Delta]
    targets: Mapping[Site, Target]
    depths: Mapping[str, int]
    problems: tuple[Problem, ...] = ()
    tied: bool | None = None

    @cached_property
    def energies(self) -> Mapping[Site, float]:
        """‖ΔW‖²_F by site; not finite where a factor is not."""
        with np.errstate(all="ignore"):
            return MappingProxyType({site: delta.energy() for site, delta in self.deltas.items()})

    def stack(self, site: Site) -> str | None:
        """The stack of layers that a site is in; None for a site outside the layers."""
        return None if site.layer is None else self.architecture.roles[site.role].depth

    def as_dict(self) -> AdapterJSON:
        known = bool(self.architecture.dims)
        stated = "config" in self.dims.origins.values()
        return {
            "name": self.adapter.name,
            "base": self.adapter.base,
            "family": self.architecture.family if known else None,
            "dims": None if not known else "stated" if stated else "inferred",
            "deltas": len(self.deltas),
            "kinds": sorted({delta.kind for delta in self.deltas.values()}),
            "extras": len(self.adapter.extras),
        }


def bind(adapter: Adapter, identity: Identity) -> BoundAdapter:
    """The adapter's deltas keyed by site; ``problems`` has those of reading, of the family, of shapes and
    completeness."""
    architecture = identity.architecture
    stated, resized = resized_vocabulary(adapter, architecture, identity.dims)
    problems: list[Problem] = []
    located, unlocated = _located(adapter, identity)
    deltas: dict[Site, Delta] = {}
    for site, (_, delta) in located.items():
        try:
            deltas[site] = oriented(delta, architecture.roles[site.role], stated, adapter)
        except RefusedError as error:
            problems += error.problems
    dims = _infer(deltas, architecture, stated)
    shapes = {site: expected_shape(site, architecture.roles[site.role], dims) for site in deltas}
    problems += with_sizes(deltas, shapes, {site: target for site, (target, _) in located.items()})
    depths = depths_of(deltas, architecture, dims, adapter)
    problems += [*unlocated, *_moved(located, adapter, architecture)]
    for site, delta in deltas.items():
        problems += _site_problems(site, delta, architecture.roles[site.role], dims, located[site][0])
    problems += layer_problems(deltas, architecture, dims, adapter)
    problems += completeness_problems(architecture, dims, depths, adapter)
    problems += extra_problems(adapter, architecture, dims)
    known = [*adapter.problems, *identity.problems, *resized]
    problems = [*causes(identity, adapter, deltas, stated, problems), *known, *problems]
    if identity.known and not adapter.problems and identity.dims.values == {}:
        problems.append(_inferred(dims, depths, adapter))
    return BoundAdapter(
        adapter=adapter,
        architecture=architecture,
        dims=dims,
        deltas=MappingProxyType(deltas),
        targets=MappingProxyType({site: target for site, (target, _) in located.items()}),
        depths=MappingProxyType(depths),
        problems=tuple(problems),
        tied=identity.tied,
    )


def summed(energies: Iterable[float]) -> float:
    """The sum of energies, exactly rounded; Inf or NaN where it is not finite."""
    found = list(energies)
    try:
        return fsum(found)
    except (OverflowError, ValueError):  # fsum raises for Inf and for Inf - Inf
        return sum(found)


def _located(adapter: Adapter, identity: Identity) -> tuple[dict[Site, tuple[Target, Delta]], list[Problem]]:
    architecture = identity.architecture
    located: dict[Site, tuple[Target, Delta]] = {}
    problems = []
    for target, delta in adapter.deltas.items():
        site = _site(target, architecture)
        if site is None:
            problems.append(_nowhere(target, identity))
        elif site in located:
            found = f"{target} and {located[site][0]} are the same module"
            problems.append(Problem("duplicate", str(site), found, "one delta for one module"))
        else:
            located[site] = (target, delta)
    return dict(sorted(located.items(), key=lambda item: item[0].order)), problems


def _moved(
    located: Mapping[Site, tuple[Target, Delta]], adapter: Adapter, architecture: Architecture
) -> Iterator[Problem]:
    """A problem for deltas that an injection file has under another site than its family has for their module."""
    recorded = adapter.recorded
    sites = recorded.sites if recorded is not None and recorded.family == architecture.family else {}
    for site, (target, _) in located.items():
        if (recorded_site := sites.get(target, str(site))) != str(site):
            found = f"the file has the delta of {target} under it, which is {site}"
            yield Problem(
                "injection-invalid",
                recorded_site,
                found,
                "the site of the module",
                "The file was tampered with: convert again.",
            )


def _site(target: Target, architecture: Architecture) -> Site | None:
    """The site of a target; equal slots are the parts of a fused weight only where its layout is of equal parts."""
    site = architecture.locate(target.path)
    if site is None or target.slot is None:
        return site
    role = architecture.roles[site.role]
    alike = role.layout == "contiguous" and len(role.parts) == target.slots and len(set(role.parts.values())) == 1
    return replace(site, part=list(role.parts)[target.slot] if alike else f"slot{target.slot}")


def _nowhere(target: Target, identity: Identity) -> Problem:
    """The problem of a module that the family does not have; it names the families that have all modules."""
    architecture = identity.architecture
    paths = sorted({role.paths[0] for role in architecture.roles.values()}, key=lambda path: ("{" not in path, path))
    near = [path for path in paths if path.endswith(target.path.rpartition(".")[2])] or paths[:3]
    others = " or ".join(identity.alternatives[:3])
    remedy = f"The adapter's modules are those of {others}" if others else "The adapter was made for another family"
    return Problem(
        "site-missing",
        str(target),
        f"no {architecture.family} model has such a module",
        f"a module such as {' or '.join(near)}",
        f"{remedy}: name the base that it was trained on with --base.",
    )


def expected_shape(site: Site, role: Role, dims: Dims) -> Shape:
    """(out, in) of a site's delta, None where a dimension is not known."""
    out, inp = expressions(site, role)
    return (dims.get(out) if out else None, dims.get(inp) if inp else None)


def _infer(deltas: Mapping[Site, Delta], architecture: Architecture, dims: Dims) -> Dims:
    """Dims with the value of every expression that no config stated and the tensors imply.

    Where tensors disagree the most frequent value counts, so that the minority is reported.
    """
    votes = {name: found for name, found in sizes(deltas, architecture).items() if dims.get(name) is None}
    implied = {expression: counter.most_common(1)[0][0] for expression, counter in votes.items()}
    return Dims(
        MappingProxyType({**dims.values, **implied}),
        MappingProxyType({**dims.origins, **dict.fromkeys(implied, "tensors")}),
    )


def _site_problems(site: Site, delta: Delta, role: Role, dims: Dims, target: Target) -> Iterator[Problem]:
    for axis, size, expected, expression in zip(
        delta.axes,
        delta.shape,
        expected_shape(site, role, dims),
        expressions(site, role),
        strict=True,
    ):
        if expected is not None and size and size != expected:
            yield Problem(
                "shape",
                f"{site} ({target})",
                f"{size} {axis}",
                f"{dims.explain(expression or '')}",
                "The adapter belongs to a model of another size.",
            )
    yield from delta.site_problems(site, role, dims, f"{site} ({target})")


def _inferred(dims: Dims, depths: Mapping[str, int], adapter: Adapter) -> Problem:
    known = [f"{name} = {value}" for name, value in {**dims.values, **depths}.items()]
    return Problem(
        "dims-inferred", adapter.name, f"dims are inferred from the tensors: {', '.join(known)}", severity="note"
    )


def nonfinite(bound: BoundAdapter) -> Iterator[Problem]:
    """A problem for every tensor that holds NaN or Inf."""
    summed_up = {id(t) for s, d in bound.deltas.items() if np.isfinite(bound.energies[s]) for t in d.energy_tensors()}
    for name, tensor in bound.adapter.tensors():
        if id(tensor) not in summed_up and tensor.dtype in FLOATS and (bad := tensor.nonfinite()):
            yield Problem(
                "nonfinite",
                name,
                f"{bad} of {tensor.size} numbers are NaN or Inf",
                "finite numbers",
                "--allow-nonfinite accepts them.",
            )
