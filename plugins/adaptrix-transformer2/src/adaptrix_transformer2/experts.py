"""An expert as an ordinary adapter: a spectral delta for every matrix, each bound to the base's own weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adaptrix import Adapter, Problem, Provenance, RefusedError, Spectral, Target
from adaptrix import Tensor as Stored
from adaptrix.extend import Options, Pipeline, bind, errors_in, make_plan
from adaptrix_transformer2.decomposition import Decomposition

if TYPE_CHECKING:
    from adaptrix.extend import AdapterJSON

FORMAT = "transformer2"  # of the provenance
Numbers = Tensor | NDArray[Any]


def expert(
    decomposition: Decomposition,
    name: str,
    z: Mapping[str, Numbers],
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Adapter:
    """The adapter of z ``[k]`` by module path; ``config`` and ``files`` (digests) go into its provenance.

    Raises :class:`RefusedError` with every matrix that is missing, strange, of another length or not finite.
    """
    numbers = {path: _array(one) for path, one in z.items()}
    if problems := _faults(decomposition, numbers):
        raise RefusedError(problems)
    deltas = {Target(path): replace(delta, z=Stored.of(numbers[path])) for path, delta in decomposition.spectra.items()}
    recorded, digests = MappingProxyType(dict(config or {})), MappingProxyType(dict(files or {}))
    provenance = Provenance(next(iter(digests), name), FORMAT, files=digests, config=recorded)
    return Adapter(name, MappingProxyType(deltas), MappingProxyType({}), provenance, decomposition.base)


def untrained(decomposition: Decomposition, name: str) -> Adapter:
    """The expert of z = 1, which changes nothing."""
    return expert(decomposition, name, {path: np.ones(one.rank) for path, one in decomposition.spectra.items()})


def z_of_expert(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """The z ``[k]`` of every matrix by module path. Raises :class:`RefusedError` for deltas that are not spectral."""
    odd = [target for target, delta in adapter.deltas.items() if not isinstance(delta, Spectral)]
    if odd:
        raise RefusedError(
            Problem("kind-unsupported", f"{adapter.name} {target}", "this is no spectral delta", "an expert's z")
            for target in odd
        )
    return {str(target): delta.z.float64() for target, delta in adapter.deltas.items() if isinstance(delta, Spectral)}


def save(
    adapter: Adapter, decomposition: Decomposition, out: str | PathLike[str] | None = None, *, force: bool = False
) -> Path:
    """Writes an expert as an injection file: z and S alone, a few hundred kB; :func:`adaptrix.load` reads it.

    ``out`` as for :func:`adaptrix.convert`. U and V are computed from the base's weights wherever the expert is put
    to use, once a weight. Raises :class:`AdaptrixError`, and then leaves nothing behind.
    """
    slim = {target: delta.without_vectors() for target, delta in adapter.deltas.items()}
    bound = bind(replace(adapter, deltas=MappingProxyType(slim)), decomposition.identity)
    if errors := errors_in(bound.problems):
        raise RefusedError(errors)
    options = Options(force=force)
    pipeline = Pipeline()
    target = None if out is None else fspath(out)
    pipeline.prepare(target, options)
    return pipeline.publish(make_plan(bound, "all"), target, options).path


def as_json(adapter: Adapter, decomposition: Decomposition) -> AdapterJSON:
    """An expert as every ``--json`` has an adapter."""
    return bind(adapter, decomposition.identity).as_dict()


def _array(numbers: Numbers) -> NDArray[np.float32]:
    plain = numbers.detach().cpu().float().numpy() if isinstance(numbers, Tensor) else numbers
    return np.ascontiguousarray(plain, dtype=np.float32)


def _faults(decomposition: Decomposition, z: Mapping[str, NDArray[np.float32]]) -> list[Problem]:
    known = decomposition.spectra
    problems = [
        Problem("tensor-missing", path, "the expert has no z for it", "one for every matrix")
        for path in known
        if path not in z
    ]
    problems += [
        Problem("tensor-unexpected", path, "the base has no such MLP matrix") for path in z if path not in known
    ]
    for path in known.keys() & z.keys():
        if z[path].shape != (known[path].rank,):
            found, expected = f"z of shape {list(z[path].shape)}", f"{[known[path].rank]}, its singular values"
            problems.append(Problem("shape", path, found, expected))
        elif bad := int((~np.isfinite(z[path])).sum()):
            problems.append(Problem("nonfinite", path, f"{bad} of {z[path].size} numbers of z are NaN or Inf"))
    return problems
