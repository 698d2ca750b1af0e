"""A library of LoRAs to be given back: their factors side by side, and the embeddings of their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from adaptrix.adapter import Adapter, Target
from adaptrix.delta import LowRank
from adaptrix.errors import Problem, RefusedError, refuse
from adaptrix_text_to_lora.hypernetwork import Factors
from adaptrix_text_to_lora.shape import Shape
from adaptrix_text_to_lora.targets import Place
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
            raise refuse("library", "library", f"{sorted(counts)} LoRAs", f"{len(embeddings)}, as there are embeddings")
        targets = {name: canonical(A, B, rank) for name, (A, B) in factors.items()}
        return cls(tuple(embeddings), MappingProxyType(targets))

    @classmethod
    def of_adapters(
        cls, embeddings: Sequence[Tensor], adapters: Sequence[Adapter], places: Sequence[Place], shape: Shape,
        scale: float,
    ) -> Library:  # fmt: skip
        """One of adapters, of any rank up to the hypernetwork's and of any scale of their own.

        A module that an adapter leaves alone is one where its ΔW is zero. Raises :class:`RefusedError` with every
        delta that a LoRA of this shape cannot stand for.
        """
        problems = [problem for adapter in adapters for problem in _strangers(adapter, places, shape)]
        if problems:
            raise RefusedError(problems)
        sizes = {module.name: (module.inp, module.out) for module in shape.modules}
        targets = {}
        for place in places:
            pairs = [_stacked(adapter, place, shape, *sizes[place.name], scale) for adapter in adapters]
            targets[place.name] = (torch.stack([A for A, _ in pairs]), torch.stack([B for _, B in pairs]))
        return cls(tuple(embeddings), MappingProxyType(targets))


def _strangers(adapter: Adapter, places: Sequence[Place], shape: Shape) -> Iterator[Problem]:
    """Deltas elsewhere than at the places, or of another kind or width than theirs."""
    widths = {place.path(layer): _width(place, shape) for place in places for layer in range(shape.layers)}
    for target, delta in adapter.deltas.items():
        where = f"{adapter.name} {target}"
        plain = isinstance(delta, LowRank) and delta.magnitude is None and delta.bias is None and delta.experts is None
        if target.path not in widths:
            yield Problem("targets", where, "the hypernetwork makes no delta there", "its own modules alone")
        elif not plain or target.slot is not None:
            yield Problem("kind", where, "it is no plain LoRA", "A and B alone")
        elif delta.shape != widths[target.path]:
            yield Problem("shape", where, f"ΔW {list(delta.shape)}", f"{list(widths[target.path])}")
    if adapter.extras:
        yield Problem("extra", adapter.name, f"it has {next(iter(adapter.extras))}, which is no delta", "deltas alone")


def _width(place: Place, shape: Shape) -> tuple[int, int]:
    """(out, in) of the whole weight."""
    module = next(module for module in shape.modules if module.name == place.name)
    return (sum(map(len, place.rows.values())) if place.part else module.out), module.inp


def _stacked(adapter: Adapter, place: Place, shape: Shape, inp: int, out: int, scale: float) -> tuple[Tensor, Tensor]:
    """An adapter's factors at a place, ``[layers, r, in]`` and ``[layers, out, r]``."""
    pairs = [_pair(adapter.deltas, place, layer, inp, out) for layer in range(shape.layers)]
    made = [canonical(A, B / scale, shape.rank) for A, B in pairs]
    return torch.stack([A for A, _ in made]), torch.stack([B for _, B in made])


def _pair(deltas: Mapping[Target, object], place: Place, layer: int, inp: int, out: int) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]``, its own scale folded in; of a part of a fused weight, the part's rows."""
    delta = deltas.get(Target(place.path(layer)))
    if not isinstance(delta, LowRank):
        return torch.zeros(1, inp), torch.zeros(out, 1)
    A, B = (torch.from_numpy(factor.float32().copy()) for factor in (delta.A, delta.B))
    B = B if place.part is None else B[torch.from_numpy(place.rows[place.part])]
    return A, B * delta.scale
