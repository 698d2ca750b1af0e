"""Reads an injection file. Its manifest comes from a stranger like everything else: each value is
checked where it is taken, and every problem is collected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isclose
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from adaptrix.adapter import Adapter, Extra, ExtraKind, Fit, Provenance, Recorded, Target, nothing_targeted
from adaptrix.architecture.dims import Dims
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem, errors_in, refuse
from adaptrix.formats import injection, peft_config, peft_keys, peft_promises, safetensors_file
from adaptrix.records import Bundle
from adaptrix.tensor import FLOATS, Tensor

_LARGEST = 1 << 40  # of a dimension
_NAMES = {"lora_A": "A", "lora_B": "B", "lora_B.bias": "bias", "magnitude": "magnitude"}


class _MalformedError(Exception):
    """A value of the manifest that is not what the format says; its text says which."""


def read(bundle: Bundle) -> Adapter:
    """The adapter of an injection file, its plan under ``recorded``. Raises :class:`RefusedError`."""
    name = next(iter(sorted(bundle.files)))
    path = bundle.files[name]
    tensors, metadata = safetensors_file.read(path)
    manifest = _manifest(path, metadata)
    try:
        return _adapter(manifest, dict(tensors), path)
    except _MalformedError as error:
        raise refuse("manifest", path, str(error), f"an injection file of version {injection.VERSION}") from None


def _manifest(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "adaptrix" not in metadata:
        raise refuse(
            "manifest",
            path,
            "there is no manifest in its metadata",
            "an injection file, as `adaptrix convert` writes",
            "If these are the weights of an adapter, give the folder with adapter_config.json.",
        )
    try:
        manifest = json.loads(metadata["adaptrix"])
        # half a surrogate could not be written again, and NaN is Python's own addition to JSON
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        found = f"the manifest is not JSON ({error})"
        raise refuse("manifest", path, found, remedy="The file is damaged: fetch it again.") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != injection.VERSION:
        raise refuse(
            "manifest", path, f"manifest version {version!r}"[:200], f"version {injection.VERSION}", "Update adaptrix."
        )
    return dict(manifest)


def _adapter(manifest: Mapping[str, Any], tensors: dict[str, Tensor], path: Path) -> Adapter:
    """The adapter that the manifest describes; ``tensors`` is used up."""
    problems: list[Problem] = []
    found = _deltas(_table(manifest, "deltas"), tensors, "", problems)
    overrides = _deltas(_table(manifest, "overrides"), tensors, "plan.", problems)
    extras = _extras(manifest, tensors, problems)
    problems += [
        Problem("unexpected", f"{path.name} {name}", "the manifest does not mention this tensor", "only those it does")
        for name in tensors
    ]
    deltas = dict(found.values())
    if len(deltas) != len(found):
        problems.append(Problem("duplicate", path.name, "two sites of one module", "one delta for one place"))
    if not found and not problems:
        problems.append(Problem("empty", path.name, "the file has no deltas", "at least one"))
    if not problems:
        problems += _override_problems(found, overrides)
    base, source = _object(manifest.get("base"), "base"), _object(manifest.get("source"), "source")
    provenance = _provenance(source)
    altered = source.get("altered") is True
    targeted: Callable[[str], bool] = nothing_targeted
    if provenance.format == "peft":
        config, wrong = peft_config.parse(provenance.config)
        problems += errors_in(wrong)
        targeted = targeted if altered or errors_in(wrong) else peft_promises.promise(config, deltas)
    return Adapter(
        name=_text(manifest.get("name"), "name"),
        deltas=MappingProxyType(deltas),
        extras=MappingProxyType(extras),
        provenance=provenance,
        base=_optional_text(base.get("model"), "base model"),
        problems=tuple(problems),
        altered=altered,
        targeted=targeted,
        recorded=_recorded(
            base,
            _object(manifest.get("plan"), "plan"),
            {target: site for site, (target, _) in found.items()},
            {site: delta for site, (_, delta) in overrides.items()},
        ),
    )


def _deltas(
    table: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str, problems: list[Problem]
) -> dict[str, tuple[Target, Delta]]:
    """The sound deltas of a table of the manifest, by site."""
    found: dict[str, tuple[Target, Delta]] = {}
    for site, entry in table.items():
        target, delta = _delta(site, _object(entry, f"{prefix}{site}"), tensors, prefix, problems)
        if delta is not None:
            found[site] = (target, delta)
    return found


def _override_problems(found: Mapping[str, tuple[Target, Delta]], overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """What the plan puts in a delta's place must fit there as well."""
    for site, (target, delta) in overrides.items():
        if site not in found or found[site][0] != target or found[site][1].shape != delta.shape:
            yield Problem("override", f"plan.{site}", f"{target} {delta.shape}", "a delta of the file, and its shape")


def _delta(
    site: str, entry: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str, problems: list[Problem]
) -> tuple[Target, LowRank | None]:
    found = {field: tensors.pop(f"{prefix}{site}.{name}", None) for name, field in _NAMES.items()}
    target = _target(site, entry)
    A, B = found["A"], found["B"]
    if A is None or B is None:
        problems.append(Problem("pair", f"{prefix}{site}", "lora_A or lora_B is missing", "both"))
        return target, None
    where = f"{prefix}{site}"
    if found_wrong := _factor_problems([t for t in found.values() if t is not None], A, B, where):
        problems += found_wrong
        return target, None
    delta = replace(_built(A, B, entry, site), bias=found["bias"], magnitude=found["magnitude"])
    found_wrong = _delta_problems(delta, entry, where)
    problems += found_wrong
    return target, None if found_wrong else delta


def _target(site: str, entry: Mapping[str, Any]) -> Target:
    path = _text(entry.get("module"), f"{site} module")
    if peft_keys.parse(path) is None:
        raise _MalformedError(f"{site}: module {path!r}")
    slots = entry.get("slots")
    if slots is None:
        return Target(path)
    if not (isinstance(slots, list) and len(slots) == 2 and all(map(_whole, slots)) and slots[0] < slots[1] <= 64):
        raise _MalformedError(f"{site}: slots {slots!r}"[:200])
    return Target(path, *slots)


def _built(A: Tensor, B: Tensor, entry: Mapping[str, Any], site: str) -> LowRank:
    experts = entry.get("experts")
    if experts is not None and not (_whole(experts) and 0 < experts <= A.shape[0]):
        raise _MalformedError(f"{site}: experts {experts!r}"[:200])
    return LowRank(
        A,
        B,
        _number(entry.get("alpha"), f"{site} alpha"),
        rslora=entry.get("rslora") is True,
        embedding=entry.get("embedding") is True,
        experts=experts,
        transposed=entry.get("transposed") is True,
    )


def _factor_problems(tensors: list[Tensor], A: Tensor, B: Tensor, where: str) -> list[Problem]:
    if odd := [tensor.dtype for tensor in tensors if tensor.dtype not in FLOATS]:
        return [Problem("dtype", where, ", ".join(odd), f"one of {', '.join(FLOATS)}")]
    if len(A.shape) != 2 or len(B.shape) != 2 or 0 in (*A.shape, *B.shape) or A.shape[0] != B.shape[1]:
        return [Problem("shape", where, f"A {list(A.shape)}, B {list(B.shape)}", "A [r, in], B [out, r]")]
    return []


def _delta_problems(delta: LowRank, entry: Mapping[str, Any], where: str) -> list[Problem]:
    if delta.A.shape[0] % (delta.experts or 1) or delta.rank != entry.get("rank"):
        rank = repr(entry.get("rank"))[:80]
        return [Problem("rank", where, f"A has {delta.A.shape[0]} rows", f"rank {rank} as the manifest says")]
    scale = _number(entry.get("scale"), f"{where} scale")
    if not isclose(scale, delta.scale, rel_tol=1e-9):
        return [Problem("scale", where, f"scale {scale!r}", f"{delta.scale} from alpha and rank")]
    return []


def _extras(manifest: Mapping[str, Any], tensors: dict[str, Tensor], problems: list[Problem]) -> dict[str, Extra]:
    extras = {}
    for key, kind in _table(manifest, "extras").items():
        tensor = tensors.pop(f"extras.{key}", None)
        if tensor is None or kind not in get_args(ExtraKind) or peft_keys.parse(key) is None:
            problems.append(
                Problem("extra", f"extras.{key}", f"kind {kind!r}, tensor {'there' if tensor else 'missing'}")
            )
        else:
            extras[key] = Extra(kind, tensor)
    return extras


def _provenance(source: Mapping[str, Any]) -> Provenance:
    files, config = _object(source.get("files"), "source files"), _object(source.get("config"), "source config")
    return Provenance(
        uri=_text(source.get("uri"), "source uri"),
        format=_text(source.get("format"), "source format"),
        commit=_optional_text(source.get("commit"), "source commit"),
        files=MappingProxyType({name: _text(digest, f"sha256 of {name}") for name, digest in files.items()}),
        config=MappingProxyType(config),
    )


def _recorded(
    base: Mapping[str, Any], plan: Mapping[str, Any], sites: Mapping[Target, str], overrides: Mapping[str, Delta]
) -> Recorded:
    layers = {stack: tuple(map(_layer, _list(found, "layers"))) for stack, found in _table(plan, "layers").items()}
    dims = {name: _object(entry, f"dims {name}") for name, entry in _table(base, "dims").items()}
    if not all(_whole(entry.get("value")) and entry["value"] <= _LARGEST for entry in dims.values()):
        raise _MalformedError("base dims are not whole numbers of a sensible size")
    gains = _table(plan, "gains")
    return Recorded(
        family=_text(base.get("architecture"), "base architecture"),
        known=base.get("known") is True,
        dims=Dims(
            MappingProxyType({name: entry["value"] for name, entry in dims.items()}),
            MappingProxyType({name: _text(entry.get("from"), f"origin of {name}") for name, entry in dims.items()}),
        ),
        policy=_text(plan.get("policy"), "plan policy"),
        layers=MappingProxyType(layers),
        gains=MappingProxyType({_index(layer): _number(gain, "gain") for layer, gain in gains.items()}),
        sites=MappingProxyType(dict(sites)),
        overrides=MappingProxyType(dict(overrides)),
        notes=tuple(_text(note, "plan note") for note in _list(plan.get("notes"), "plan notes")),
        fit=None if plan.get("fit") is None else _fit(_table(plan, "fit")),
    )


def _fit(told: Mapping[str, Any]) -> Fit:
    return Fit(
        text=_text(told.get("text"), "fit text"),
        before=_number(told.get("before"), "fit before"),
        after=_number(told.get("after"), "fit after"),
        **{name: _size(told.get(name), f"fit {name}") for name in ("tokens", "steps", "taken", "seed")},
    )


def _table(owner: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _object(owner.get(key), key)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MalformedError(f"{what} is not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _MalformedError(f"{what} is not a list")
    return value


def _layer(value: Any) -> int:
    if not _whole(value) or value > 999_999:
        raise _MalformedError(f"layer {value!r}"[:200])
    return int(value)


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise _MalformedError(f"layer {text!r}"[:200])
    return int(text)


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:  # neither NaN nor an integer of 400 digits
        raise _MalformedError(f"{what} is {value!r}"[:200])
    return float(value)


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _size(value: Any, what: str) -> int:
    if not _whole(value) or value > _LARGEST:
        raise _MalformedError(f"{what} is {value!r}"[:200])
    return int(value)


def _optional_text(value: Any, what: str) -> str | None:
    return None if value is None else _text(value, what)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise _MalformedError(f"{what} is {repr(value)[:80]}")
    return value
