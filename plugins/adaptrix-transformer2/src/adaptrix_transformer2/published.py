"""Experts as the code published with the paper saves them (github.com/SakanaAI/self-adaptive-llms).

``learnable_params.pt`` has p in bf16 by the name of the weight; ``policy_params.pt`` the same in a list without names:
gate, up and down of every layer. Neither is z: that is m·Σs/Σ(s⊙m) with m = sigmoid(p) in bf16, whatever factor
``max_mult`` m had. A third file, ``*_decomposed_params.pt``, holds U, S and V that they were trained with, as
``<weight>.U`` and so on; where it is given, its S makes z, and what the base's own decomposition makes of it is
measured. The files are pickles, and none is ever executed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adaptrix import Adapter, Bundle, Problem, RefusedError, Spectral, Tensor, UsageError
from adaptrix.extend import FLOATS, refuse, some, torch_file
from adaptrix_transformer2.decomposition import Decomposition
from adaptrix_transformer2.experts import expert
from adaptrix_transformer2.parametrisation import norm_kept

_NAMELESS = re.compile(r"(?:[\w.]+\.)?(\d{1,6})")
_SIDES = ("U", "S", "V")
_PROBES = 8
#: U, S and V in bf16 make the weight but for about half a percent
_SAME = 0.05
#: of ‖ΔW‖: what may come of the base's own decomposition being another
_APART = 0.02

Parts = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]


def read_published(
    path: str | PathLike[str],
    decomposition: Decomposition,
    decomposed: str | PathLike[str] | None = None,
    *,
    name: str | None = None,
) -> Adapter:
    """The expert in a ``policy_params.pt`` or a ``learnable_params.pt``, for a decomposed base.

    ``decomposed``: the ``*_decomposed_params.pt`` that it was trained with. Raises :class:`RefusedError` with every
    problem of the file that has one.
    """
    file = _file(path)
    bundle = Bundle(str(file), file.stem, {file.name: file})
    with bundle.held():
        given = _by_path(torch_file.read(file), decomposition, file)
    S = {where: delta.S.float32() for where, delta in decomposition.spectra.items()}
    parts: Parts = {}
    if decomposed is not None:
        parts = _parts(_file(decomposed), decomposition)
        S = {where: s for where, (_, s, _) in parts.items()}
    z = {where: _z(p, S[where]) for where, p in given.items()}
    made = expert(decomposition, name or file.stem, z, {"method": "published"}, bundle.sha256)
    return replace(made, problems=tuple(_apart(made, parts)))


def require_readable(*paths: str | PathLike[str] | None) -> None:
    """Raises :class:`AdaptrixError` for files that are none of torch's; for whoever has a base to decompose first."""
    for path in paths:
        if path is not None:
            torch_file.read(_file(path))


def _file(path: str | PathLike[str]) -> Path:
    found = Path(os.path.expanduser(path))
    if not found.is_file():
        said = "this is a folder" if found.is_dir() else "there is no such file"
        raise UsageError(Problem("file-unsupported", str(path), said, "a file of torch.save"))
    return found


def _by_path(tensors: Mapping[str, Tensor], decomposition: Decomposition, file: Path) -> dict[str, Tensor]:
    """The p by module path. Raises with everything that is missing, strange, of another size or not finite."""
    if any(name.endswith(tuple(f".{side}" for side in _SIDES)) for name in tensors):
        remedy = "Give it beside a policy_params.pt or a learnable_params.pt, as the decomposition."
        raise refuse("kind-unsupported", file, "this is a decomposition, not an expert", "p of an expert", remedy)
    if tensors and all(_NAMELESS.fullmatch(name) for name in tensors):
        given = _listed(tensors, decomposition, file)
    else:
        given = _named(tensors, decomposition, file)
    if problems := [fault for where, p in given.items() for fault in _faults(where, p, decomposition, file)]:
        raise RefusedError(problems)
    return given


def _listed(tensors: Mapping[str, Tensor], decomposition: Decomposition, file: Path) -> dict[str, Tensor]:
    """Of a list without names: as many as the base has matrices, in their order."""
    by_number = {int(_NAMELESS.fullmatch(name)[1]): tensor for name, tensor in tensors.items()}  # type: ignore[index]  # the caller saw that it matches
    paths = list(decomposition.spectra)
    if sorted(by_number) != list(range(len(paths))):
        found = f"a list of {len(tensors)} without names" + ("" if len(by_number) == len(tensors) else ", some twice")
        expected = f"{len(paths)}, one for each MLP matrix of the base, numbered from 0 on"
        raise refuse("base-mismatch", file, found, expected, "It was trained on another base.")
    return {path: by_number[number] for number, path in enumerate(paths)}


def _named(tensors: Mapping[str, Tensor], decomposition: Decomposition, file: Path) -> dict[str, Tensor]:
    own = _own_path(decomposition)
    found = {own(name): tensor for name, tensor in tensors.items()}
    problems = [*_repeated(map(own, tensors), file)]
    problems += [
        Problem("tensor-missing", f"{file} {path}", "there is no p for it", "one for every MLP matrix of the base")
        for path in decomposition.spectra
        if path not in found
    ]
    if strange := [path for path in found if path not in decomposition.spectra]:
        said = f"p for {some(strange, 5)}, which are no MLP matrices of the base"
        problems.append(Problem("tensor-unexpected", str(file), said, "gate, up and down of its layers"))
    if problems:
        raise RefusedError(problems)
    return found


def _own_path(decomposition: Decomposition) -> Callable[[str], str]:
    """From a weight's name, whatever prefix it was saved with, to the base's own path."""
    architecture = decomposition.identity.architecture
    sites = {architecture.locate(path): path for path in decomposition.spectra}

    def own(name: str) -> str:
        path = name.removesuffix(".weight")
        return sites.get(architecture.locate(path), path)

    return own


def _repeated(places: Iterable[str], file: Path) -> Iterator[Problem]:
    """A problem for every place that several tensors of a file are for, under one prefix and another."""
    for place, count in Counter(places).items():
        if count > 1:
            yield Problem("duplicate", f"{file} {place}", f"{count} tensors are for it", "one")


def _faults(where: str, p: Tensor, decomposition: Decomposition, file: Path) -> Iterator[Problem]:
    place, size = f"{file} {where}", decomposition.spectra[where].rank
    if p.dtype not in FLOATS:
        yield Problem("dtype", place, f"its dtype is {p.dtype}", "a floating-point dtype")
    elif p.shape != (size,):
        yield Problem("shape", place, f"p of shape {list(p.shape)}", f"{[size]}, the base's singular values")
    elif bad := p.nonfinite():
        yield Problem("nonfinite", place, f"{bad} of {p.size} numbers are NaN or Inf")


def _z(p: Tensor, S: NDArray[np.float32]) -> torch.Tensor:
    m = torch.sigmoid(torch.from_numpy(p.float32().copy())).to(torch.bfloat16).float()
    return norm_kept(m, torch.from_numpy(S.copy()))


def _parts(file: Path, decomposition: Decomposition) -> Parts:
    """U ``[out, k]``, S ``[k]`` and V ``[in, k]`` by module path, rounded to bf16 as the published code does.

    Raises with every one that is missing, of another shape, not finite, or of another base.
    """
    tensors, problems = torch_file.read(file), list[Problem]()
    own, sided = _own_path(decomposition), [name for name in tensors if name[-2:-1] == "."]
    named = {(own(name[:-2]), name[-1]): tensors[name] for name in sided}
    problems += _repeated((f"{own(name[:-2])}{name[-2:]}" for name in sided), file)
    found = {}
    for path, delta in decomposition.spectra.items():
        faults = list(_part_faults(path, delta, named, file))
        if not faults:
            U, S, V = (named[path, side].cast("BF16").float32() for side in _SIDES)
            found[path] = (U, S, V)
            faults = list(_other_base(path, delta, found[path], file))
        problems += faults
    if problems:
        raise RefusedError(problems)
    return found


def _part_faults(path: str, delta: Spectral, named: Mapping[tuple[str, str], Tensor], file: Path) -> Iterator[Problem]:
    (out, inp), k = delta.shape, delta.rank
    for side, shape in zip(_SIDES, ((out, k), (k,), (inp, k)), strict=True):
        where, tensor = f"{file} {path}.{side}", named.get((path, side))
        if tensor is None:
            yield Problem("tensor-missing", where, "it is not there", "U, S and V of every MLP matrix")
        elif tensor.dtype not in FLOATS or tensor.shape != shape:
            yield Problem("shape", where, f"{tensor.dtype} of shape {list(tensor.shape)}", f"floats of {list(shape)}")
        elif bad := tensor.nonfinite():
            yield Problem("nonfinite", where, f"{bad} of {tensor.size} numbers are NaN or Inf")


def _other_base(
    path: str, delta: Spectral, part: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], file: Path
) -> Iterator[Problem]:
    """A problem where U·diag(S)·Vᵀ is another weight than the base's, as far as random vectors tell."""
    ones = np.ones(delta.rank)
    gap = _gap(delta, delta.S.float64() * ones, part, part[1].astype(np.float64))
    if not gap <= _SAME:
        found = f"its U, S and V make another weight than the base's: {gap:.0%} of it differ"
        yield Problem("base-mismatch", f"{file} {path}", found, "the decomposition of this base")


def _apart(made: Adapter, parts: Parts) -> Iterator[Problem]:
    """A warning where the base's own decomposition makes another ΔW of z than the published one did."""
    gaps = {}
    for target, delta in made.deltas.items():
        if str(target) in parts and isinstance(delta, Spectral):
            part = parts[str(target)]
            gaps[str(target)] = _gap(delta, delta.d, part, part[1] * (delta.z.float64() - 1.0))
    if gaps and max(gaps.values()) > _APART:
        worst = max(gaps, key=lambda path: gaps[path])
        found = f"ΔW differs from that of the published U, S and V, by {gaps[worst]:.1%} in {worst}"
        yield Problem("approximation", made.name, found, f"at most {_APART:.0%}", severity="warning")


def _gap(
    delta: Spectral,
    values: NDArray[np.float64],
    part: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    others: NDArray[np.float64],
) -> float:
    """‖U·diag(values)·Vᵀ − U'·diag(others)·V'ᵀ‖ over the norm of the second, estimated by random vectors."""
    U, Vt = delta.vectors()
    x = np.random.default_rng(0).standard_normal((delta.shape[1], _PROBES))
    theirs = part[0] @ (others[:, None] * (part[2].T @ x))
    ours = U @ (values[:, None] * (Vt @ x))
    return float(np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) or 1.0))
