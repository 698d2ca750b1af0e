"""The sizes of a hypernetwork: all that decides which tensors it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: what a head puts out at once: A and B, one of them, or one row of one of them
Variant = Literal["L", "M", "S"]
#: what is done to the heads' output: ``added`` to an offset (SFT), ``z-score`` undone (reconstruction), or nothing
Output = Literal["added", "z-score", "plain"]


@dataclass(frozen=True, slots=True)
class Module:
    """A type of module that gets deltas: ``name`` as the checkpoint has it, A ``[r, inp]``, B ``[out, r]``."""

    name: str
    inp: int
    out: int

    @property
    def widest(self) -> int:
        """The width of a head of M and S, which serves both A and B."""
        return max(self.inp, self.out)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a hypernetwork.

    ``modules``: in the order of their type embeddings, which is a matter of record and never that of a set;
    ``layers``: of the base; ``embedding``: E, the width of a text's embedding; ``latent``, ``head_in``: ℓ and H;
    ``bias``: whether the heads have one.
    """

    variant: Variant
    modules: tuple[Module, ...]
    layers: int
    rank: int
    embedding: int
    latent: int = 128
    head_in: int = 512
    bias: bool = True
    output: Output = "added"

    def head_out(self, module: Module) -> int:
        """The width of a module's head."""
        if self.variant == "L":
            return self.rank * (module.inp + module.out)
        return module.widest * (self.rank if self.variant == "M" else 1)
