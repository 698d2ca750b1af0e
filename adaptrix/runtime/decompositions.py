"""The singular vectors of a model's weights, for as long as a spectral adapter uses them.

The decomposition has to be that of the weight before anything is hooked: the weight's hash is compared with the one
that the delta names. The vectors are shared by all adapters that have the same ones to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from typing import Protocol, TypedDict
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from adaptrix.architecture import Site
from adaptrix.delta import Spectral, of_class
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix.planning.plan import Plan
from adaptrix.runtime.factors import beside_others, device_of, gain_of, home, present
from adaptrix.runtime.modules import Reached, whole_site
from adaptrix.runtime.spectral import Axes, SpectralKernel, axes_of
from adaptrix.tensor import Tensor as Stored
from adaptrix.torch_tensor import NAMES, as_stored, as_torch


class Resolver(Protocol):
    """Brings deltas and the weights that they are of together; raises :class:`RefusedError` for other weights.

    ``of``: the same for the same numbers of the same weight; ``turned``: it is stored ``[in, out]`` (Conv1D);
    ``where`` is what messages call it.
    """

    def hold(self, delta: Spectral, weight: Callable[[], Stored], *, of: Hashable, turned: bool, where: str) -> None:
        """Checks a weight against the delta's hash, and decomposes nothing."""

    def __call__(
        self, delta: Spectral, weight: Callable[[], Stored], *, of: Hashable, turned: bool, where: str
    ) -> Spectral:
        """The delta with U and V of the weight."""


_UNQUANTISED = "Load the base without quantisation, or merge the adapter into it."


class Decompositions:
    """Axes by module and by what they are of; forgotten when no adapter has them."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._axes: WeakValueDictionary[tuple[object, ...], Axes] = WeakValueDictionary()

    def problems(self, plan: Plan, modules: Mapping[Site, Reached]) -> Iterator[Problem]:
        """Problems for weights that are not those of the plan's spectral deltas, found before any is decomposed."""
        for site, delta in of_class({site: plan.delta(site) for site in plan.sites}, Spectral).items():
            where = f"{plan.bound.adapter.name} {site}"
            try:
                _require_matrix(modules[whole_site(site)], where)
                _require_finite(delta, where)
                self._resolver.hold(delta, **_asked(modules[whole_site(site)], where))
            except RefusedError as error:
                yield from error.problems

    def kernel(self, plan: Plan, site: Site, delta: Spectral, reached: Reached, dtype: torch.dtype) -> SpectralKernel:
        """The kernel of a plan's spectral delta. Raises :class:`RefusedError` where the weight is not the delta's."""
        found = self._resolver(delta, **_asked(reached, f"{plan.bound.adapter.name} {site}"))
        named = None if delta.resolved else (site, dtype, delta.basis)  # whose U and V are the cache's
        axes = self._axes.get(named) if named else None
        if axes is None:
            axes = self._shared(found, reached, dtype)
        if named is not None:
            self._axes[named] = axes
        return SpectralKernel(axes, changes(plan, site, delta, axes.V.device).to(dtype))

    def _shared(self, found: Spectral, reached: Reached, dtype: torch.dtype) -> Axes:
        """The axes of a resolved delta; those that are there already where U and V are the same."""
        assert found.U is not None and found.Vt is not None  # noqa: PT018  # it is resolved
        key = (reached.site, dtype, _hash(found.U), _hash(found.Vt))
        axes = self._axes.get(key)
        if axes is None:
            device = device_of(reached.module)
            axes = axes_of(as_torch(found.U, device), as_torch(found.Vt, device), dtype)
            self._axes[key] = axes
        return axes


def spectral_kernel(plan: Plan, sites: list[Site], reached: Reached, decompositions: Decompositions) -> SpectralKernel:
    """The kernel of the spectral delta on a module. Raises :class:`RefusedError` where there are others beside it."""
    delta = plan.delta(sites[0])
    if len(sites) != 1 or not isinstance(delta, Spectral):
        raise beside_others(sites[0], delta)
    _, dtype = home(reached.module)
    return decompositions.kernel(plan, sites[0], delta, reached, dtype)


def changes(plan: Plan, site: Site, delta: Spectral, device: torch.device) -> Tensor:
    """The changes ``[k]`` of the singular values under a plan, its gain included, in fp64."""
    return torch.from_numpy(delta.d * gain_of(plan, site)).to(device)


class _Asked(TypedDict):
    weight: Callable[[], Stored]
    of: Hashable
    turned: bool
    where: str


def _asked(reached: Reached, where: str) -> _Asked:
    """The arguments of a resolver for a module's weight."""
    turned = type(reached.module).__name__ == "Conv1D"
    return {
        "weight": partial(_weight, reached, where),
        "of": (reached.site, _state(reached)),
        "turned": turned,
        "where": where,
    }


def _state(reached: Reached) -> tuple[int, int | None]:
    """The address of a weight and the count of writes to it: where either differs, it is another weight."""
    weight = reached.module.get_parameter("weight")
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _require_finite(delta: Spectral, where: str) -> None:
    if not np.isfinite(delta.d).all():
        raise refuse("nonfinite", where, "NaN or Inf among its numbers", "finite numbers", "Fetch it again.")


def _weight(reached: Reached, where: str) -> Stored:
    """The module's weight to the byte. Raises :class:`RefusedError` for one that is not kept in floats."""
    with present(reached.module):
        weight = reached.module.weight
        plain = isinstance(weight, Tensor) and type(weight) in (Tensor, nn.Parameter) and weight.dtype in NAMES
        if not isinstance(weight, Tensor) or not plain:
            found = "the weight is quantised, so that it cannot be checked that the delta belongs to it"
            raise refuse("quantised", where, found, "a weight in floats", _UNQUANTISED)
        return as_stored(weight)


def _require_matrix(reached: Reached, where: str) -> None:
    """Raises :class:`RefusedError` for an embedding, which is looked up; a family that is not known may name one."""
    if isinstance(reached.module, nn.Embedding):
        raise refuse("kind-unsupported", where, "a spectral delta on an embedding", "one on a linear module")


def _hash(tensor: Stored) -> bytes:
    digest = sha256()
    for chunk in tensor.chunks():
        digest.update(chunk)
    return digest.digest()
