"""Reading and writing: an adapter on every weight of a model goes out and comes back, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.architecture import Architecture
from adaptrix.bind import bind
from adaptrix.delta import LowRank
from adaptrix.dims import Dims
from adaptrix.errors import errors_in
from adaptrix.formats import injection, injection_read, peft_read, peft_write
from adaptrix.identify import Identity
from adaptrix.plan import make_plan
from adaptrix.records import Bundle
from adaptrix.tensor import Tensor

RANK, ALPHA = 3, 5


def lossy(architecture: Architecture, dims: Dims, paths: Iterable[str], folder: Path) -> Iterator[str]:
    """What does not survive, in words: problems of fit, and tensors that came back otherwise."""
    adapter = _adapter(architecture, dims, paths)
    bound = bind(adapter, Identity(architecture, dims, known=True))
    yield from map(str, errors_in(bound.problems))
    plan = make_plan(bound, "middle")
    injection.write(plan, folder / "a.adaptrix.safetensors")
    yield from _unlike(adapter, injection_read.read(_bundle(folder / "a.adaptrix.safetensors")))
    peft_write.write(make_plan(bound, "all"), folder / "peft")
    yield from _unlike(adapter, peft_read.read(_bundle(*(folder / "peft").iterdir())))


def _adapter(architecture: Architecture, dims: Dims, paths: Iterable[str]) -> Adapter:
    """A delta of random numbers on every path whose shape is known."""
    random = np.random.default_rng(0)
    deltas = {}
    for path in paths:
        site = architecture.locate(path)
        role = None if site is None else architecture.roles[site.role]
        out, inp = (None, None) if role is None else (dims.get(e) if e else None for e in (role.out, role.inp))
        if role is not None and out and inp:
            experts = dims.get(role.experts) if role.experts else None
            rows = RANK * (experts or 1)
            A, B = (Tensor.of(random.standard_normal(shape).astype(np.float32)) for shape in ((rows, inp), (out, rows)))
            embedding = role.orientation == "embedding"
            deltas[Target(path)] = LowRank(A, B, float(ALPHA), embedding=embedding, experts=experts)
    return Adapter("law", MappingProxyType(deltas), MappingProxyType({}), _provenance(deltas))


def _provenance(deltas: Mapping[Target, LowRank]) -> Provenance:
    """The config that peft would have written."""
    stacked = [target.path for target, delta in deltas.items() if delta.experts]
    config = {
        "peft_type": "LORA",
        "peft_version": "0.21.0",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [target.path for target, delta in deltas.items() if not delta.experts],
        **({"target_parameters": stacked} if stacked else {}),
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
