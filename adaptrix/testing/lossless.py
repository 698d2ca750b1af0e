"""Reading and writing: an adapter on every weight of a model goes out and comes back, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from adaptrix.adapter import Adapter, Extra, Provenance, Target
from adaptrix.architecture import Architecture, Role
from adaptrix.architecture.dims import Dims
from adaptrix.binding.bind import bind
from adaptrix.binding.identify import Identity
from adaptrix.delta import LowRank
from adaptrix.errors import errors_in
from adaptrix.formats import injection, injection_read, peft_read, peft_write
from adaptrix.planning.plan import make_plan
from adaptrix.records import Bundle
from adaptrix.tensor import Tensor

RANK, ALPHA = 3, 5
Kind = Literal["lora", "dora", "bias"]


def lossy(architecture: Architecture, dims: Dims, paths: Iterable[str], folder: Path) -> Iterator[str]:
    """The losses of writing and reading an adapter, in words: problems, and tensors that are not the same.

    Tried as a plain LoRA, with DoRA's magnitudes, and with biases, as far as peft has these. ``paths``: the modules
    of the adapter; ``folder``: for its files.
    """
    known = list(paths)
    for kind in get_args(Kind):
        adapter = _adapter(architecture, dims, known, kind)
        if adapter.deltas:
            (folder / kind).mkdir()
            yield from _lost(adapter, Identity(architecture, dims, known=True), folder / kind)


def _lost(adapter: Adapter, identity: Identity, folder: Path) -> Iterator[str]:
    bound = bind(adapter, identity)
    yield from map(str, errors_in(bound.problems))
    injection.write(make_plan(bound, "middle"), folder / "a.adaptrix.safetensors")
    yield from _unlike(adapter, injection_read.read(_bundle(folder / "a.adaptrix.safetensors")))
    peft_write.write(make_plan(bound, "all"), folder / "peft")
    yield from _unlike(adapter, peft_read.read(_bundle(*(folder / "peft").iterdir())))


def _adapter(architecture: Architecture, dims: Dims, paths: Iterable[str], kind: Kind) -> Adapter:
    """A delta of random numbers on every path whose shape is known and that may have one of the kind."""
    random = np.random.default_rng(0)
    deltas, extras = {}, {}
    for path in paths:
        site = architecture.locate(path)
        role = None if site is None else architecture.roles[site.role]
        out, inp = (None, None) if role is None else (dims.get(e) if e else None for e in (role.out, role.inp))
        if role is not None and out and inp and _has(role, kind):
            experts = dims.get(role.experts) if role.experts else None
            rows = RANK * (experts or 1)
            A, B, vector, bias = (_random(random, shape) for shape in ((rows, inp), (out, rows), (out,), (out,)))
            deltas[Target(path)] = LowRank(
                A,
                B,
                float(ALPHA),
                bias=vector if kind == "bias" else None,
                magnitude=vector if kind == "dora" else None,
                embedding=role.orientation == "embedding",
                experts=experts,
            )
            if kind == "bias":
                extras[f"{path}.base_layer.bias"] = Extra("bias", bias)
    return Adapter("law", MappingProxyType(deltas), MappingProxyType(extras), _provenance(deltas, kind))


def _has(role: Role, kind: Kind) -> bool:
    """True where peft has the kind for such a weight: no DoRA on parameters, biases on linear layers alone."""
    parameter, embedding = role.orientation.startswith("experts"), role.orientation == "embedding"
    return kind == "lora" or not (parameter or (embedding and kind == "bias"))


def _random(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return Tensor.of(random.standard_normal(shape).astype(np.float32))


def _provenance(deltas: Mapping[Target, LowRank], kind: Kind) -> Provenance:
    """The config that peft would have written."""
    stacked = [target.path for target, delta in deltas.items() if delta.experts]
    config = {
        "peft_type": "LORA",
        "peft_version": "0.21.0",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [target.path for target, delta in deltas.items() if not delta.experts],
        **({"target_parameters": stacked} if stacked else {}),
        "use_dora": kind == "dora",
        "lora_bias": kind == "bias",
        "bias": "lora_only" if kind == "bias" else "none",
    }
    return Provenance("memory", "peft", config=MappingProxyType(config))


def _bundle(*files: Path) -> Bundle:
    return Bundle(str(files[0].parent), "law", {file.name: file for file in files})


def _unlike(adapter: Adapter, back: Adapter) -> Iterator[str]:
    yield from (f"{back.provenance.format}: {problem}" for problem in errors_in(back.problems))
    before, after = ({name: (t.dtype, t.shape, t.tobytes()) for name, t in one.tensors()} for one in (adapter, back))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"{name}: written and read, it is {'gone' if name not in after else 'another tensor'}"
