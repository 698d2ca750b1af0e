"""Small adapters out of thin air, for tests that need no file and no model."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from adaptrix.adapter import Adapter, Provenance, Target
from adaptrix.architecture.registry import builtin_folder, read_architecture
from adaptrix.binding.bind import BoundAdapter, bind
from adaptrix.binding.identify import Identity, by_paths
from adaptrix.delta import LowRank
from adaptrix.tensor import Tensor

LLAMA = read_architecture(builtin_folder() / "llama.toml")
SHAPES = {"q": (24, 18), "k": (8, 18), "down": (18, 30)}  # out × in: GQA, nothing square


def low_rank(
    rng: np.random.Generator, out: int, inp: int, rank: int, alpha: float = 3.0, dtype: str = "F32"
) -> LowRank:
    factors = [rng.standard_normal(shape).astype(np.float32) for shape in ((rank, inp), (out, rank))]
    return LowRank(*(Tensor.of(f).cast(dtype) for f in factors), alpha=alpha)


def adapter(layers: int, *, seed: int = 0, rank: int = 3, loud: dict[int, float] | None = None) -> Adapter:
    """A Llama's q, k and down deltas; ``loud`` multiplies alpha by layer."""
    rng = np.random.default_rng(seed)
    deltas = {
        Target(LLAMA.roles[role].paths[0].format(layer=layer)): low_rank(
            rng, *SHAPES[role], rank, alpha=3.0 * (loud or {}).get(layer, 1.0)
        )
        for layer in range(layers)
        for role in SHAPES
    }
    return Adapter("made", MappingProxyType(deltas), MappingProxyType({}), Provenance("memory", "made"))


def bound(layers: int, **options: object) -> BoundAdapter:
    made = adapter(layers, **options)  # type: ignore[arg-type]  # passed on as they are
    return bind(made, by_paths(made, [LLAMA]))


def identity() -> Identity:
    return by_paths(adapter(1), [LLAMA])
