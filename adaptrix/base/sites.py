"""The weights of a base by site, for every layout that its files may have.

A fused weight may be stored whole or as its parts, experts stacked or one by one, and the names may begin with any of
the family's prefixes. From that follows what a delta adds to each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex, role_rows
from adaptrix.base.model_view import ModelView, Piece
from adaptrix.delta import LowRank, Parametrised, straightened
from adaptrix.errors import Problem
from adaptrix.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """The term that one delta adds to one weight, or its bias to a bias.

    - ``site``, ``delta``: of the adapter.
    - ``gain``: multiplies the delta's scale.
    - ``taken``: the rows of ΔW ``[out, in]`` that this weight gets; None for all.
    - ``put``: the rows of the weight that they are added to; None for all, in order.
    - ``source``: which of the delta's stacked experts; None where none are stacked, or each is added to its own.
    - ``expert``: which of the weight's stacked experts; None likewise.
    """

    site: Site
    delta: LowRank | Parametrised
    gain: float = 1.0
    taken: RowIndex | None = None
    put: RowIndex | None = None
    source: int | None = None
    expert: int | None = None

    @property
    def scale(self) -> float:
        return self.delta.scale * self.gain

    @property
    def low_rank(self) -> LowRank:
        """The delta as a LoRA, made of its formula where it is asked for: all of them would not fit into memory."""
        return self.delta.low_rank()[0] if isinstance(self.delta, Parametrised) else self.delta

    @property
    def out(self) -> int:
        """The number of rows of the weight that the term changes."""
        return self.delta.shape[0] if self.taken is None else len(self.taken)


def is_kept(role: Role) -> bool:
    """True for the role of a module path that no architecture describes."""
    return role.name.startswith("modules.")


def _ambiguous(name: str, target: str, shape: tuple[int, ...]) -> Problem:
    found = f"its weight is square, {list(shape)}, and neither the registry nor a model class says which axis is out"
    remedy = "Name a base whose config.json transformers can build, or add the family: `adaptrix architectures derive`."
    return Problem("ambiguous", f"{name} ({target})", found, "a weight whose axes are known", remedy)


class BaseSites:
    """The tensors of a base by site, ``weight`` and ``bias`` apart.

    ``view``: what the model class says, where the registry does not say all. Names of tensors are those of the files.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], architecture: Architecture, dims: Dims, view: ModelView | None = None
    ) -> None:
        self.tensors, self.view = tensors, view
        self._architecture, self._dims = architecture, dims
        self._weights: dict[Site, list[str]] = {}
        self._biases: dict[Site, list[str]] = {}
        self._pieces: dict[Site, tuple[Piece, ...]] = {}
        for name in tensors:
            site, leaf = self._site(name if view is None else view.parameters.get(name, name))
            if site is not None:
                (self._biases if leaf == "bias" else self._weights).setdefault(site, []).append(name)
        for name, pieces in (view.pieces if view else {}).items():
            site, _ = self._site(name)
            if site is not None:
                self._pieces[site] = pieces
        self._apart: dict[tuple[int | None, str], list[Site]] = {}
        for site in self._weights:
            self._apart.setdefault((site.layer, site.role), []).append(site)

    def _site(self, name: str) -> tuple[Site | None, str]:
        """The site of a parameter, and the last part of its name."""
        path, _, leaf = name.rpartition(".")
        bare = leaf not in ("weight", "bias")  # experts are bare parameters
        return self._architecture.locate(name if bare else path), leaf

    def has(self, site: Site) -> bool:
        """True where the files have the weight of a site, whole or in parts."""
        found = self._weights.keys() | self._pieces.keys()
        return bool(found & {site, Site(site.layer, site.role)} or (site.layer, site.role) in self._apart)

    def turned(self, name: str, term: Term, target: str) -> bool | Problem:
        """True for a tensor stored as ``[in, out]``, by the registry, else by the model class, else by its shape.

        ``target``: the module's path. Returns a problem where none of them decides: ΔW and its transpose both fit.
        """
        stated = self._stated(term.site, target)
        if stated is not None:
            return stated
        shape, wanted = self.tensors[name].shape[-2:], (term.out, term.delta.shape[1])
        if term.delta.embedding or (shape != wanted and shape == wanted[::-1]):
            return True
        if shape != wanted[::-1]:
            return False
        return _ambiguous(name, target, shape)

    def scaled_turned(self, name: str, site: Site, target: str, wanted: tuple[int, int]) -> bool | Problem:
        """The same for a change that knows one side of its weight: ``wanted`` is (out, in), 0 for the other."""
        stated = self._stated(site, target)
        shape = self.tensors[name].shape[-2:]
        fits = [all(size in (0, own) for size, own in zip(wanted, way, strict=False)) for way in (shape, shape[::-1])]
        if stated is None and all(fits):
            return _ambiguous(name, target, shape)
        return not fits[0] if stated is None else stated

    def _stated(self, site: Site, target: str) -> bool | None:
        """True for ``[in, out]``, as the registry has it or else the model class; None where neither says."""
        role = self._architecture.roles[site.role]
        if not is_kept(role):
            return role.orientation in ("conv1d", "embedding", "experts_transposed")
        stated = self.view.orientations.get(target) if self.view else None
        return None if stated is None else stated in ("conv1d", "embedding", "experts_transposed")

    def weights(self, role: str) -> list[str]:
        """The names of a role outside the layers."""
        return self._weights.get(Site(None, role), [])

    def whole(self, site: Site) -> list[str]:
        """The names of the weight of a site, where the base stores it neither fused nor split."""
        return self._weights.get(site, [])

    def whole_biases(self, site: Site) -> list[str]:
        """The names of the bias of a site, likewise."""
        return self._biases.get(site, [])

    def linear(self) -> dict[str, bool]:
        """The weights of linear modules in the layers: name -> True where it is stored ``[in, out]``.

        These are what QLoRA quantises; experts and routers are no linear modules, heads are left as they are.
        """
        found: dict[str, bool] = {}
        for site, names in self._weights.items():
            role = self._architecture.roles[site.role]
            if site.layer is not None and role.orientation in ("linear", "conv1d") and role.name != "router":
                found |= dict.fromkeys(names, role.orientation == "conv1d")
        return found

    def biases_of(self, role: str) -> list[str]:
        """The names of the biases of a role outside the layers."""
        return self._biases.get(Site(None, role), [])

    @property
    def roles(self) -> Mapping[str, Role]:
        return self._architecture.roles

    def named(self, key: str) -> list[str]:
        """The tensors that a checkpoint's key names: as it is, or under another of the family's prefixes."""
        prefixes = self._architecture.prefixes
        spelled = {key, *(new + key.removeprefix(old) for old in prefixes if key.startswith(old) for new in prefixes)}
        found = [name for name in self.tensors if name in spelled]
        if found:
            return found
        path, _, leaf = key.rpartition(".")
        site = self._architecture.locate(path)
        by_site = {"weight": self._weights, "bias": self._biases}.get(leaf, {})
        return by_site.get(site, []) if site else []

    def tied_files(self, key: str) -> list[str]:
        """The tensors that a parameter is the same as, where the model class ties it to others."""
        if self.view is None:
            return []
        tied = self.view.tied_with(key) - {key}
        return [name for name in self.tensors if self.view.parameters.get(name, name) in tied]

    def terms(self, site: Site, target: str, delta: LowRank | Parametrised, gain: float) -> Iterator[tuple[str, Term]]:
        """Every tensor that a site's delta changes, with what is added to it; nothing where the base lacks any.

        ``target``: the module's path.
        """
        stated = self.view.orientations.get(target) if self.view else None
        if isinstance(delta, LowRank):
            # such a stack is stored as every version of peft has described it, unlike others
            delta = replace(delta, transposed=False) if stated == "experts_transposed" else straightened(delta)
        term = Term(site, delta, gain)
        whole = Site(site.layer, site.role)
        role = self._architecture.roles[site.role]
        if site in self._weights:
            yield from ((name, term) for name in self._weights[site])
        elif site in self._pieces:
            for piece in self._pieces[site]:
                rows = None if piece.rows is None else np.arange(*piece.rows)
                yield piece.name, replace(term, taken=rows, source=piece.expert)
        elif whole in self._weights:
            placed = self._within(term, role)
            yield from ((name, placed) for name in self._weights[whole] if placed is not None)
        else:
            yield from self._split(term, role)

    def biases(self, site: Site, delta: LowRank, gain: float) -> Iterator[tuple[str, Term]]:
        """The same for the bias of a delta."""
        term: Term | None = Term(site, delta, gain)
        names = self._biases.get(site)
        if names is None:
            names = self._biases.get(Site(site.layer, site.role), [])
            term = self._within(Term(site, delta, gain), self._architecture.roles[site.role])
        if term is not None:
            yield from ((name, term) for name in names)

    def _within(self, term: Term, role: Role) -> Term | None:
        """The term of a part or an expert, within the weight that holds all; None where its rows are not known."""
        rows = None if term.site.part is None else (role_rows(role, self._dims) or {}).get(term.site.part)
        if term.site.part is not None and rows is None:
            return None
        return replace(term, put=rows, expert=term.site.expert)

    def _split(self, term: Term, role: Role) -> Iterator[tuple[str, Term]]:
        """The terms of a whole weight for the parts and experts that the base stores one by one; all or none."""
        rows = role_rows(role, self._dims) if role.parts else None
        parts = [term.site.part] if term.site.part is not None or rows is None else list(rows)
        stacked = term.delta.experts
        experts = [term.site.expert] if stacked is None else list(range(stacked))
        sites = [Site(term.site.layer, role.name, part, expert) for part in parts for expert in experts]
        if not all(site in self._weights for site in sites):
            return
        for site in sites:
            taken = None if rows is None or site.part == term.site.part else rows[site.part or ""]
            source = None if stacked is None else site.expert
            for name in self._weights[site]:
                yield name, replace(term, taken=taken, source=source)
