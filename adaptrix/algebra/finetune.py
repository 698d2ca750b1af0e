"""Differences between a full fine-tune and its base: the weights that a LoRA can hold, and all the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from adaptrix.adapter import Extra
from adaptrix.algebra.factors import identical
from adaptrix.algebra.lora_svd import Single
from adaptrix.architecture import Architecture, Role, Site
from adaptrix.base.checkpoint import BaseCheckpoint
from adaptrix.delta import Matrix
from adaptrix.errors import Problem, RefusedError
from adaptrix.tensor import FLOATS, Tensor
from adaptrix.wording import some

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_PIECE = 1 << 20  # numbers
_PLAIN = ("linear", "conv1d")
#: class names of causal language models, whose head may be the embedding
_CAUSAL = re.compile(r"ForCausalLM|LMHead")


@dataclass(frozen=True, slots=True, eq=False)
class WeightDifference:
    """A tensor of both models: ``name`` under the family's own prefix. ``before`` is None where the base has none."""

    name: str
    before: Tensor | None
    after: Tensor

    @property
    def path(self) -> str:
        """The module's."""
        return self.name.rpartition(".")[0]

    def size(self) -> float:
        """‖after − before‖ / ‖before‖; Inf where there was nothing."""
        if self.before is None or self.before.dtype not in FLOATS or self.after.dtype not in FLOATS:
            return float("inf")
        squares = [(float(np.vdot(b, b)), float(np.vdot(a - b, a - b))) for b, a in _pieces(self.before, self.after)]
        length, gap = (sum(found) for found in zip(*squares, strict=True))
        return float(np.sqrt(gap / length)) if length else float("inf")


@dataclass(frozen=True)
class WeightDifferences:
    """``targets``: by site, the weights of linear layers that differ; ``others``: whatever else does."""

    targets: Mapping[Site, WeightDifference]
    others: Sequence[WeightDifference]
    notes: tuple[Problem, ...] = ()


def changes(base: BaseCheckpoint, tuned: BaseCheckpoint, architecture: Architecture) -> WeightDifferences:
    """The tensors that differ. Raises :class:`RefusedError` for other shapes, and for weights that ``tuned`` lacks."""
    before, after = _by_name(base, architecture), _by_name(tuned, architecture)
    targets: dict[Site, WeightDifference] = {}
    others, problems = [], list[Problem]()
    for name, tensor in after.items():
        change = WeightDifference(name, before.get(name), tensor)
        if change.before is not None and change.before.shape != tensor.shape:
            found, expected = f"shape {list(tensor.shape)}", f"{list(change.before.shape)} as in {base.name}"
            remedy = "The fine-tune is of another model, or its vocabulary was resized: trim it to the base's."
            problems.append(Problem("shape", f"{tuned.name}, {name}", found, expected, remedy))
        elif not _same(change):
            site = target_site(name, tensor, architecture) if change.before is not None else None
            if site is None:
                others.append(change)
            else:
                targets[site] = change
    missing = sorted(before.keys() - after.keys())
    lost = [name for name in missing if target_site(name, before[name], architecture) is not None]
    problems += [
        Problem("tensor-missing", f"{tuned.name}, {name}", "the base has it, the fine-tune has not") for name in lost
    ]
    if problems:
        raise RefusedError(problems)
    return WeightDifferences(targets, others, tuple(_unmatched(sorted(set(missing) - set(lost)), tuned)))


def target_site(name: str, tensor: Tensor, architecture: Architecture) -> Site | None:
    """The site of a weight that peft puts a LoRA on: a matrix of a linear layer in the stack."""
    path, _, leaf = name.rpartition(".")
    site = architecture.locate(path) if leaf == "weight" and len(tensor.shape) == 2 else None
    if site is None or site.layer is None or site.part is not None or site.expert is not None:
        return None
    plain = architecture.roles[site.role].orientation in _PLAIN and tensor.dtype in FLOATS
    return site if plain else None


def difference(change: WeightDifference, role: Role) -> Single:
    """ΔW ``[out, in]`` of a changed target, in fp32."""
    assert change.before is not None  # a target has a base
    found = change.after.float32() - change.before.float32()
    return found.T if role.orientation == "conv1d" else found


def kept_whole(
    found: WeightDifferences,
    tuned: BaseCheckpoint,
    architecture: Architecture,
    save: Sequence[str],
    ignore: Sequence[str],
) -> tuple[dict[str, Extra], list[WeightDifference]]:
    """The other changes that are kept with the LoRA, by key, and those that ``ignore`` leaves out.

    ``found``: all differences; ``tuned``: the fine-tune; ``save``, ``ignore``: patterns of tensor names. A changed
    bias of a layer that has a delta takes those of all such layers along, since peft trains all or none. Anything else
    is a module saved whole, but for experts that the files keep apart: models stack them, and have no such modules.
    Raises :class:`RefusedError` for those, and for changes that match neither pattern.
    """
    experts = {change for change in found.others if _of_expert(change, architecture)}
    saved = [change for change in found.others if _named(change, save)]
    wanted = [change for change in saved if change not in experts or not _named(change, ignore)]
    kept = set(wanted)
    ignored = [change for change in found.others if change not in kept and _named(change, ignore)]
    decided = kept.union(ignored)
    rest = [change for change in found.others if change not in decided]
    if problems := [*_unsaved([change for change in wanted if change in experts]), *_undecided(rest, architecture)]:
        raise RefusedError(problems)
    after = _by_name(tuned, architecture)
    adapted = {change.path for change in found.targets.values()}
    extras: dict[str, Extra] = {}
    for change in wanted:
        if change.path in adapted:
            biases = (f"{path}.bias" for path in sorted(adapted))
            extras |= {key: Extra("bias", after[key]) for key in biases if key in after}
        else:
            whole = {key: tensor for key, tensor in after.items() if key.rpartition(".")[0] == change.path}
            extras |= {key: Extra("module", tensor) for key, tensor in whole.items()}
    return extras | _tied_head(extras, after, tuned, architecture), ignored


def _tied_head(
    extras: Mapping[str, Extra], after: Mapping[str, Tensor], tuned: BaseCheckpoint, architecture: Architecture
) -> dict[str, Extra]:
    """The head of a causal model that shares its weight with an embedding which is saved: peft would untie them."""
    embed, head = architecture.roles.get("embed"), architecture.roles.get("head")
    causal = any(_CAUSAL.search(str(name)) for name in tuned.config.get("architectures") or ())
    if embed is None or head is None or not causal:
        return {}
    key, own = f"{embed.paths[0]}.weight", f"{head.paths[0]}.weight"
    return {own: extras[key]} if key in extras and own not in after else {}


def _by_name(model: BaseCheckpoint, architecture: Architecture) -> Mapping[str, Tensor]:
    """A model's tensors by name; those of a headless one, which lack the family's prefix, by the names under it."""
    tensors = model.tensors()
    prefixes = tuple(filter(None, architecture.prefixes))
    if not prefixes or any(name.startswith(prefixes) for name in tensors):
        return tensors
    return {_home(name, architecture): tensor for name, tensor in tensors.items()}


def _home(name: str, architecture: Architecture) -> str:
    """The causal model's name of a headless model's tensor."""
    path, _, leaf = name.rpartition(".")
    site = architecture.locate(path)
    outside = site is not None and site.layer is None  # lm_head and score are beside the prefix, not under it
    return f"{architecture.path(site)}.{leaf}" if site is not None and outside else architecture.prefixes[0] + name


def _same(change: WeightDifference) -> bool:
    """True where the numbers are the same, whatever their dtypes."""
    before, after = change.before, change.after
    if before is None or before.shape != after.shape:
        return False
    if before.dtype == after.dtype:
        return identical(before, after)
    if before.dtype not in FLOATS or after.dtype not in FLOATS:
        return False
    return all(np.array_equal(one, other) for one, other in _pieces(before, after))


def _pieces(one: Tensor, other: Tensor) -> Iterator[tuple[Matrix, Matrix]]:
    """Two tensors of one shape in fp64, a few of their numbers at a time."""
    flat = one.reshape(one.size), other.reshape(other.size)
    for start in range(0, one.size, _PIECE):
        first, second = (tensor.rows(start, min(start + _PIECE, one.size)).float64() for tensor in flat)
        yield first, second


def _named(change: WeightDifference, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(change.name, pattern) for pattern in patterns)


def kinds(found: Sequence[WeightDifference]) -> dict[str, list[WeightDifference]]:
    """Changes by a pattern of their names: those of one tensor in every layer, and of every expert, together."""
    groups: dict[str, list[WeightDifference]] = {}
    for change in found:
        groups.setdefault(_NUMBER.sub(".*", change.name), []).append(change)
    return groups


def _of_expert(change: WeightDifference, architecture: Architecture) -> bool:
    site = architecture.locate(change.path)
    return site is not None and site.expert is not None


def _unsaved(apart: Sequence[WeightDifference]) -> Iterator[Problem]:
    """One problem for each kind of expert that was to be saved."""
    for pattern, group in kinds(apart).items():
        found = f"{len(group)} experts cannot be saved whole: models stack them, and have no such modules"
        yield Problem(
            "decision-needed", pattern, found, remedy=f"--ignore '{pattern}' leaves them out; keep the fine-tune."
        )


def _undecided(rest: Sequence[WeightDifference], architecture: Architecture) -> Iterator[Problem]:
    """One problem for each kind of change that a LoRA cannot hold, with the options that decide about it."""
    for pattern, group in kinds(rest).items():
        largest = max(change.size() for change in group)
        by = f"by up to {largest:.2g} of their norm" if largest < float("inf") else "or are new"
        found = f"{len(group)} tensor{'s differ' if len(group) > 1 else ' differs'} {by}, and a LoRA cannot hold "
        leave = f"--ignore '{pattern}' leaves them out; '*' is all."
        if _of_expert(group[0], architecture):
            yield Problem("decision-needed", pattern, f"{found}experts", "a decision", leave)
        else:
            yield Problem(
                "decision-needed", pattern, f"{found}them", "a decision", f"--save '{pattern}' keeps them, {leave}"
            )


def _unmatched(names: Sequence[str], tuned: BaseCheckpoint) -> Iterator[Problem]:
    if names:
        found = f"the fine-tune lacks {len(names)} tensors of the base that no LoRA changes: {some(names, 3)}"
        yield Problem("left-out", tuned.name, found, severity="note")
