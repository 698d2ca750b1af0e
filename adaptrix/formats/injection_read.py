"""The reader of injection files. The manifest is untrusted like everything else: each value is checked
where it is read, and every problem is collected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from adaptrix.adapter import Adapter, Extra, ExtraKind, FitRecord, Provenance, Recorded, Target, nothing_targeted
from adaptrix.architecture.dims import Dims
from adaptrix.delta import Delta
from adaptrix.errors import Problem, errors_in, refuse
from adaptrix.formats import injection, injection_parametrised, peft_config, peft_keys, peft_promises, safetensors_file
from adaptrix.formats.injection_deltas import read_deltas
from adaptrix.formats.manifest import (
    LARGEST,
    MalformedError,
    a_layer,
    a_list,
    a_number,
    a_size,
    a_text,
    an_index,
    an_object,
    is_whole,
    optional_text,
    table,
)
from adaptrix.records import Bundle
from adaptrix.tensor import Tensor


def read(bundle: Bundle) -> Adapter:
    """The adapter of an injection file, its plan under ``recorded``. Raises :class:`RefusedError`."""
    name = next(iter(sorted(bundle.files)))
    path = bundle.files[name]
    tensors, metadata = safetensors_file.read(path)
    manifest = _manifest(path, metadata)
    try:
        return _adapter(manifest, dict(tensors), path)
    except MalformedError as error:
        raise refuse(
            "injection-invalid", path, str(error), f"an injection file of version {injection.VERSION}"
        ) from None


def _manifest(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "adaptrix" not in metadata:
        raise refuse(
            "injection-invalid",
            path,
            "there is no manifest in its metadata",
            "an injection file, as `adaptrix convert` writes",
            "If these are the weights of an adapter, give the folder with adapter_config.json.",
        )
    try:
        manifest = json.loads(metadata["adaptrix"])
        # a lone surrogate could not be written again, and JSON has no NaN
        json.dumps(manifest, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        found = f"the manifest is not JSON ({error})"
        raise refuse("injection-invalid", path, found, remedy="The file is damaged: fetch it again.") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != injection.VERSION:
        raise refuse(
            "injection-invalid",
            path,
            f"manifest version {version!r}"[:200],
            f"version {injection.VERSION}",
            "Update adaptrix.",
        )
    return dict(manifest)


def _adapter(manifest: Mapping[str, Any], tensors: dict[str, Tensor], path: Path) -> Adapter:
    """The adapter that the manifest describes; its tensors are removed from ``tensors``."""
    problems: list[Problem] = []
    found = read_deltas(table(manifest, "deltas"), tensors, "", problems)
    overrides = read_deltas(table(manifest, "overrides"), tensors, "plan.", problems)
    extras = _extras(manifest, tensors, problems)
    shared = MappingProxyType({key: extra.tensor for key, extra in extras.items() if extra.kind == "shared"})
    for table_of in (found, overrides) if shared else ():
        problems += injection_parametrised.share(table_of, shared)
    problems += [
        Problem(
            "tensor-unexpected",
            f"{path.name} {name}",
            "the manifest does not mention this tensor",
            "only those it does",
        )
        for name in tensors
    ]
    deltas = dict(found.values())
    if len(deltas) != len(found):
        problems.append(Problem("duplicate", path.name, "two sites of one module", "one delta for one module"))
    if not found and not problems:
        problems.append(Problem("adapter-empty", path.name, "the file has no deltas", "at least one"))
    if not problems:
        problems += _override_problems(found, overrides)
    base, source = an_object(manifest.get("base"), "base"), an_object(manifest.get("source"), "source")
    provenance = _provenance(source)
    altered = source.get("altered") is True
    targeted: Callable[[str], bool] = nothing_targeted
    if provenance.format == "peft":
        config, wrong = peft_config.parse(provenance.config)
        problems += (problem for problem in wrong if problem.severity != "note")
        targeted = targeted if altered or errors_in(wrong) else peft_promises.promise(config, deltas)
    else:
        problems += peft_config.condition_problems(provenance.config)
    return Adapter(
        name=a_text(manifest.get("name"), "name"),
        deltas=MappingProxyType(deltas),
        extras=MappingProxyType(extras),
        provenance=provenance,
        base=optional_text(base.get("model"), "base model"),
        problems=tuple(problems),
        altered=altered,
        targeted=targeted,
        recorded=_recorded(
            base,
            an_object(manifest.get("plan"), "plan"),
            {target: site for site, (target, _) in found.items()},
            {site: delta for site, (_, delta) in overrides.items()},
        ),
    )


def _override_problems(found: Mapping[str, tuple[Target, Delta]], overrides: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for every override whose module or shape is not that of the delta that it replaces."""
    for site, (target, delta) in overrides.items():
        if site not in found or found[site][0] != target or found[site][1].shape != delta.shape:
            yield Problem(
                "injection-invalid", f"plan.{site}", f"{target} {delta.shape}", "a delta of the file, and its shape"
            )


def _extras(manifest: Mapping[str, Any], tensors: dict[str, Tensor], problems: list[Problem]) -> dict[str, Extra]:
    extras = {}
    for key, kind in table(manifest, "extras").items():
        tensor = tensors.pop(f"extras.{key}", None)
        if tensor is None or kind not in get_args(ExtraKind) or peft_keys.parse(key) is None:
            problems.append(
                Problem(
                    "injection-invalid", f"extras.{key}", f"kind {kind!r}, tensor {'there' if tensor else 'missing'}"
                )
            )
        else:
            extras[key] = Extra(kind, tensor)
    return extras


def _provenance(source: Mapping[str, Any]) -> Provenance:
    files, config = an_object(source.get("files"), "source files"), an_object(source.get("config"), "source config")
    return Provenance(
        uri=a_text(source.get("uri"), "source uri"),
        format=a_text(source.get("format"), "source format"),
        commit=optional_text(source.get("commit"), "source commit"),
        files=MappingProxyType({name: a_text(digest, f"sha256 of {name}") for name, digest in files.items()}),
        config=MappingProxyType(config),
    )


def _recorded(
    base: Mapping[str, Any], plan: Mapping[str, Any], sites: Mapping[Target, str], overrides: Mapping[str, Delta]
) -> Recorded:
    layers = {stack: tuple(map(a_layer, a_list(found, "layers"))) for stack, found in table(plan, "layers").items()}
    dims = {name: an_object(entry, f"dims {name}") for name, entry in table(base, "dims").items()}
    if not all(is_whole(entry.get("value")) and entry["value"] <= LARGEST for entry in dims.values()):
        raise MalformedError("base dims are not whole numbers of a sensible size")
    gains = table(plan, "gains")
    return Recorded(
        family=a_text(base.get("architecture"), "base architecture"),
        known=base.get("known") is True,
        dims=Dims(
            MappingProxyType({name: entry["value"] for name, entry in dims.items()}),
            MappingProxyType({name: a_text(entry.get("from"), f"origin of {name}") for name, entry in dims.items()}),
        ),
        policy=a_text(plan.get("policy"), "plan policy"),
        layers=MappingProxyType(layers),
        gains=MappingProxyType({an_index(layer): a_number(gain, "gain") for layer, gain in gains.items()}),
        sites=MappingProxyType(dict(sites)),
        overrides=MappingProxyType(dict(overrides)),
        notes=tuple(a_text(note, "plan note") for note in a_list(plan.get("notes"), "plan notes")),
        fit=None if plan.get("fit") is None else _fit(table(plan, "fit")),
    )


def _fit(entry: Mapping[str, Any]) -> FitRecord:
    return FitRecord(
        text=a_text(entry.get("text"), "fit text"),
        before=a_number(entry.get("before"), "fit before"),
        after=a_number(entry.get("after"), "fit after"),
        **{name: a_size(entry.get(name), f"fit {name}") for name in ("tokens", "steps", "taken", "seed")},
    )
