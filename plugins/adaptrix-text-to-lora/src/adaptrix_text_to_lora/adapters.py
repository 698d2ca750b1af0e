"""From the factors that a hypernetwork gives to an ordinary adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any

import torch

from adaptrix import Adapter, LowRank, Problem, Provenance, Target, Tensor
from adaptrix.extend import fuse, refuse
from adaptrix_text_to_lora.prompts import adapter_name
from adaptrix_text_to_lora.targets import TargetModule

Pair = tuple[torch.Tensor, torch.Tensor]
Pairs = Mapping[str, Pair]


@dataclass(frozen=True)
class Origin:
    """Facts that all adapters of one hypernetwork share: its file and digest, the base, and how ΔW is scaled."""

    uri: str
    files: Mapping[str, str]
    base: str | None
    alpha: float
    rslora: bool
    encoder: str
    problems: tuple[Problem, ...] = field(default=())

    def adapter(self, text: str, factors: Pairs, target_modules: Sequence[TargetModule]) -> Adapter:
        """The adapter of one text. ``factors``: by name (A ``[layers, r, in]``, B ``[layers, out, r]``).

        Raises :class:`RefusedError` where the hypernetwork gave what is not finite.
        """
        for name, pair in factors.items():
            if not all(bool(torch.isfinite(factor).all()) for factor in pair):
                raise refuse("nonfinite", f"{self.uri} {name}", "the hypernetwork gave NaN or Inf for this text")
        config: dict[str, Any] = {"prompt": text, "encoder": self.encoder}
        return Adapter(
            adapter_name(text),
            MappingProxyType(dict(self._deltas(factors, target_modules))),
            MappingProxyType({}),
            Provenance(self.uri, "text-to-lora", files=self.files, config=MappingProxyType(config)),
            base=self.base,
            problems=self.problems,
        )

    def _deltas(self, factors: Pairs, target_modules: Sequence[TargetModule]) -> Iterator[tuple[Target, LowRank]]:
        """Parts of one fused weight become one delta on it, of their ranks' sum: exact, and what peft can hold."""
        ordered = sorted(target_modules, key=lambda target: target.role.name)
        for _, group in groupby(ordered, key=lambda target: target.role.name):
            together = list(group)
            for layer in range(len(factors[together[0].name][0])):
                parts = {target.part: self._low_rank(factors[target.name], layer) for target in together}
                yield Target(together[0].path(layer)), _whole(parts, together[0])

    def _low_rank(self, pair: Pair, layer: int) -> LowRank:
        A, B = (Tensor.of(factor[layer].contiguous().numpy()) for factor in pair)
        return LowRank(A, B, alpha=self.alpha, rslora=self.rslora)


def _whole(parts: Mapping[str | None, LowRank], target: TargetModule) -> LowRank:
    whole = parts.get(None)
    return fuse({part: delta for part, delta in parts.items() if part}, target.rows) if whole is None else whole
