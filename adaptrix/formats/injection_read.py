"""Reads an injection file. Its manifest comes from a stranger like everything else: each value is
checked where it is taken, and every problem is collected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isclose, isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from adaptrix.adapter import Adapter, Extra, ExtraKind, Provenance, Recorded, Target
from adaptrix.delta import LowRank
from adaptrix.dims import Dims
from adaptrix.errors import Problem, refuse
from adaptrix.formats import injection, peft_keys, safetensors_file
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS, Tensor

_NAMES = {"lora_A": "A", "lora_B": "B", "lora_B.bias": "bias", "magnitude": "magnitude"}


class _Malformed(Exception):
    """A value of the manifest that is not what the format says; its text says which."""


def read(bundle: Bundle) -> Adapter:
    """The adapter of an injection file, its plan under ``recorded``. Raises :class:`RefusedError`."""
    name = next(iter(sorted(bundle.files)))
    path = bundle.files[name]
    tensors, metadata = safetensors_file.read(path)
    manifest = _manifest(path, metadata)
    try:
        return _adapter(bundle, manifest, dict(tensors), path)
    except _Malformed as error:
        raise refuse("manifest", path, str(error), f"an injection file of version {injection.VERSION}") from None


def _manifest(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "adaptrix" not in metadata:
        raise refuse("manifest", path, "there is no manifest in its metadata", "an injection file, as `adaptrix convert` writes",
                     "If these are the weights of an adapter, give the folder with adapter_config.json.")  # fmt: skip
    try:
        manifest = json.loads(metadata["adaptrix"])
    except (ValueError, RecursionError):
        raise refuse("manifest", path, "the manifest is not JSON", remedy="The file is damaged: fetch it again.") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != injection.VERSION:
        raise refuse("manifest", path, f"manifest version {version!r}", f"version {injection.VERSION}", "Update adaptrix.")
    return dict(manifest)


def _adapter(bundle: Bundle, manifest: Mapping[str, Any], tensors: dict[str, Tensor], path: Path) -> Adapter:
    problems: list[Problem] = []
    deltas, sites = {}, {}
    for site, entry in _table(manifest, "deltas").items():
        target, delta = _delta(site, _object(entry, f"deltas {site}"), tensors, "", problems)
        if delta is not None:
            deltas[target], sites[target] = delta, site
    overrides = {}
    for site, entry in _table(manifest, "overrides").items():
        _, delta = _delta(site, _object(entry, f"overrides {site}"), tensors, "plan.", problems)
        if delta is not None:
            overrides[site] = delta
    extras = _extras(manifest, tensors, problems)
    problems += [Problem("unexpected", f"{path.name} {name}", "the manifest does not mention this tensor") for name in tensors]
    if len(deltas) != len(_table(manifest, "deltas")) and not problems:
        problems.append(Problem("duplicate", path.name, "two sites of one module"))
    base = _object(manifest.get("base"), "base")
    return Adapter(
        name=_text(manifest.get("name"), "name"),
        deltas=MappingProxyType(deltas),
        extras=MappingProxyType(extras),
        provenance=_provenance(_object(manifest.get("source"), "source"), bundle),
        base=base.get("model") if isinstance(base.get("model"), str) else None,
        problems=tuple(problems),
        altered=_object(manifest.get("source"), "source").get("altered") is True,
        recorded=_recorded(base, _object(manifest.get("plan"), "plan"), sites, overrides),
    )


def _delta(
    site: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str, problems: list[Problem]
) -> tuple[Target, LowRank | None]:
    found = {field: tensors.pop(f"{prefix}{site}.{name}", None) for name, field in _NAMES.items()}
    slot, slots = entry.get("slots") or (None, None)
    path = _text(entry.get("module"), f"{site} module")
    if peft_keys.parse(path) is None or (slot is not None and not (_whole(slot) and _whole(slots) and slot < slots)):
        raise _Malformed(f"{site}: module {path!r}")
    target = Target(path, slot, slots)
    A, B = found["A"], found["B"]
    if A is None or B is None:
        problems.append(Problem("pair", f"{prefix}{site}", "lora_A or lora_B is missing", "both"))
        return target, None
    delta = _built(A, B, entry, site)
    delta = replace(delta, bias=found["bias"], magnitude=found["magnitude"])
    before = len(problems)
    problems += _delta_problems(delta, entry, f"{prefix}{site}")
    return target, delta if len(problems) == before else None


def _built(A: Tensor, B: Tensor, entry: Mapping[str, Any], site: str) -> LowRank:
    alpha, experts = entry.get("alpha"), entry.get("experts")
    if type(alpha) not in (int, float) or not isfinite(alpha) or not (experts is None or (_whole(experts) and experts > 0)):
        raise _Malformed(f"{site}: alpha {alpha!r}, experts {experts!r}")
    flags = {name: entry.get(name, False) is True for name in ("rslora", "embedding", "transposed")}
    return LowRank(A, B, float(alpha), experts=experts, **flags)


def _delta_problems(delta: LowRank, entry: Mapping[str, Any], where: str) -> list[Problem]:
    A, B = delta.A, delta.B
    if any(t.dtype not in FLOATS for t in delta.tensors().values()):
        return [Problem("dtype", where, f"{A.dtype} and {B.dtype}", f"one of {', '.join(FLOATS)}")]
    if len(A.shape) != 2 or len(B.shape) != 2 or 0 in (*A.shape, *B.shape) or A.shape[0] != B.shape[1]:
        return [Problem("shape", where, f"A {list(A.shape)}, B {list(B.shape)}", "A [r, in], B [out, r]")]
    if A.shape[0] % (delta.experts or 1) or delta.rank != entry.get("rank"):
        return [Problem("rank", where, f"A has {A.shape[0]} rows", f"rank {entry.get('rank')!r} as the manifest says")]
    scale = entry.get("scale")
    if type(scale) not in (int, float) or not isclose(scale, delta.scale, rel_tol=1e-9):
        return [Problem("scale", where, f"scale {scale!r}", f"{delta.scale} from alpha and rank")]
    return []


def _extras(manifest: Mapping[str, Any], tensors: dict[str, Tensor], problems: list[Problem]) -> dict[str, Extra]:
    extras = {}
    for key, kind in _table(manifest, "extras").items():
        tensor = tensors.pop(f"extras.{key}", None)
        if tensor is None or kind not in get_args(ExtraKind) or peft_keys.parse(key) is None:
            problems.append(Problem("extra", f"extras.{key}", f"kind {kind!r}, tensor {'there' if tensor else 'missing'}"))
        else:
            extras[key] = Extra(kind, tensor)
    return extras


def _provenance(source: Mapping[str, Any], bundle: Bundle) -> Provenance:
    files, config = _object(source.get("files"), "source files"), _object(source.get("config"), "source config")
    commit = source.get("commit")
    return Provenance(
        uri=_text(source.get("uri"), "source uri"),
        format=_text(source.get("format"), "source format"),
        commit=commit if isinstance(commit, str) else None,
        files=MappingProxyType({name: _text(digest, f"sha256 of {name}") for name, digest in files.items()}),
        config=MappingProxyType(config),
    )


def _recorded(
    base: Mapping[str, Any], plan: Mapping[str, Any], sites: Mapping[Target, str], overrides: Mapping[str, LowRank]
) -> Recorded:
    layers = {stack: tuple(map(_layer, _list(found, "layers"))) for stack, found in _table(plan, "layers").items()}
    dims = {name: _object(entry, f"dims {name}") for name, entry in _table(base, "dims").items()}
    if not all(_whole(entry.get("value")) for entry in dims.values()):
        raise _Malformed("base dims are not whole numbers")
    gains = _table(plan, "gains")
    if not all(k.isdecimal() and type(v) in (int, float) and isfinite(v) for k, v in gains.items()):
        raise _Malformed(f"plan gains {gains!r}")
    return Recorded(
        family=_text(base.get("architecture"), "base architecture"),
        known=base.get("known") is True,
        dims=Dims(
            MappingProxyType({name: entry["value"] for name, entry in dims.items()}),
            MappingProxyType({name: str(entry.get("from")) for name, entry in dims.items()}),
        ),
        policy=_text(plan.get("policy"), "plan policy"),
        layers=MappingProxyType(layers),
        gains=MappingProxyType({int(layer): float(gain) for layer, gain in gains.items()}),
        sites=MappingProxyType(dict(sites)),
        overrides=MappingProxyType(dict(overrides)),
    )


def _table(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _object(owner.get(key), key)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{what} is not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Malformed(f"{what} is not a list")
    return value


def _layer(value: Any) -> int:
    if not _whole(value) or value > 999_999:
        raise _Malformed(f"layer {value!r}")
    return int(value)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise _Malformed(f"{what} is {str(value)[:80]!r}")
    return value


