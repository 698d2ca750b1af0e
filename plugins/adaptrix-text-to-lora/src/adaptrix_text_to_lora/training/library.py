"""A library of LoRAs to be given back: their factors side by side, and the embeddings of their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from adaptrix import BoundAdapter, Delta, LowRank, Problem, RefusedError, Site
from adaptrix.extend import errors_in, refuse
from adaptrix_text_to_lora.hypernetwork import Factors
from adaptrix_text_to_lora.shape import Shape
from adaptrix_text_to_lora.targets import TargetModule
from adaptrix_text_to_lora.training.canonical import canonical


@dataclass(frozen=True, eq=False)
class Library:
    """``embeddings``: for each LoRA ``[descriptions, E]``; ``targets``: by module A ``[LoRAs, layers, r, in]`` and B
    ``[LoRAs, layers, out, r]``, canonical, for the scale that the hypernetwork's own LoRAs will have."""

    embeddings: tuple[Tensor, ...]
    targets: Factors

    @classmethod
    def of_factors(cls, embeddings: Sequence[Tensor], factors: Factors, rank: int | None = None) -> Library:
        """One of LoRAs in memory, whatever their factors. Raises :class:`RefusedError`."""
        counts = {len(factor) for pair in factors.values() for factor in pair}
        if counts != {len(embeddings)} or not len(embeddings):
            raise refuse(
                "training-data", "library", f"{sorted(counts)} LoRAs", f"{len(embeddings)}, as there are embeddings"
            )
        targets = {name: canonical(A, B, rank) for name, (A, B) in factors.items()}
        return cls(tuple(embeddings), MappingProxyType(targets))

    @classmethod
    def of_adapters(
        cls, embeddings: Sequence[Tensor], adapters: Sequence[BoundAdapter], target_modules: Sequence[TargetModule],
        shape: Shape, scale: float,
    ) -> Library:  # fmt: skip
        """One of adapters, of any rank up to the hypernetwork's and of any scale of their own.

        A module that an adapter leaves alone is one where its ΔW is zero. Raises :class:`RefusedError` with every
        delta that a LoRA of this shape cannot stand for.
        """
        if problems := [problem for adapter in adapters for problem in _unservable(adapter, target_modules)]:
            raise RefusedError(problems)
        sizes = {module.name: (module.inp, module.out) for module in shape.modules}
        targets = {}
        for target in target_modules:
            pairs = [_stacked(adapter, target, shape, *sizes[target.name], scale) for adapter in adapters]
            targets[target.name] = (torch.stack([A for A, _ in pairs]), torch.stack([B for _, B in pairs]))
        return cls(tuple(embeddings), MappingProxyType(targets))


def _unservable(bound: BoundAdapter, target_modules: Sequence[TargetModule]) -> Iterator[Problem]:
    """Deltas elsewhere than at the places, or of another kind than theirs; errors of binding, too."""
    yield from errors_in(bound.problems)
    name = bound.adapter.name
    served = {(target.role.name, target.part) for target in target_modules}
    for site, delta in bound.deltas.items():
        where = f"{name} {site}"
        whole = (site.role, None) in served
        parts = {part for role, part in served if role == site.role and part is not None}
        if not (whole and site.part is None) and not (parts and site.part in {None, *parts}):
            yield Problem("targets", where, "the hypernetwork makes no delta there", "its own modules alone")
        elif not isinstance(delta, LowRank) or delta.tensors().keys() != {"lora_A", "lora_B"} or delta.experts:
            yield Problem("kind-unsupported", where, "it is no plain LoRA", "A and B alone")
        elif site.part is None and not whole:
            yield from _outside(where, delta, [target for target in target_modules if target.role.name == site.role])
    if bound.adapter.extras:
        yield Problem(
            "extra-unsupported", name, f"it has {next(iter(bound.adapter.extras))}, which is no delta", "deltas alone"
        )


def _outside(where: str, delta: LowRank, target_modules: Sequence[TargetModule]) -> Iterator[Problem]:
    """Problems of a delta on a fused weight that changes parts for which the hypernetwork makes no delta."""
    B = delta.B.float64()
    own = {target.part for target in target_modules}
    for part, rows in target_modules[0].rows.items():
        if part not in own and B[rows].any():
            yield Problem("targets", where, f"it changes {part}", f"{', '.join(map(str, sorted(map(str, own))))} alone")


def _stacked(
    bound: BoundAdapter, target: TargetModule, shape: Shape, inp: int, out: int, scale: float
) -> tuple[Tensor, Tensor]:
    """An adapter's factors at a place, ``[layers, r, in]`` and ``[layers, out, r]``."""
    made = []
    for layer in range(shape.layers):
        A, B = _pair(bound.deltas, target, layer, inp, out)
        made.append(canonical(A, B / scale, shape.rank))
    return torch.stack([A for A, _ in made]), torch.stack([B for _, B in made])


def _pair(deltas: Mapping[Site, Delta], target: TargetModule, layer: int, inp: int, out: int) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]``, its own scale folded in; of a part of a fused weight, the part's rows."""
    own = deltas.get(Site(layer, target.role.name, target.part))
    delta = own or deltas.get(Site(layer, target.role.name))
    if not isinstance(delta, LowRank):
        return torch.zeros(1, inp), torch.zeros(out, 1)
    A, B = (torch.from_numpy(factor.float32().copy()) for factor in (delta.A, delta.B))
    B = B if own is not None or target.part is None else B[torch.from_numpy(target.rows[target.part])]
    return A, B * delta.scale
