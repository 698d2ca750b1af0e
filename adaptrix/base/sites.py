"""The weights of a base by site, whatever layout its files have.

A fused weight may be stored whole or as its parts, experts stacked or one by one, and the names may begin with any of
the family's prefixes. From that follows what a delta adds to each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.layout import RowIndex, role_rows
from adaptrix.delta import LowRank, straightened
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
    delta: LowRank
    gain: float = 1.0
    taken: RowIndex | None = None
    put: RowIndex | None = None
    source: int | None = None
    expert: int | None = None

    @property
    def scale(self) -> float:
        return self.delta.scale * self.gain

    @property
    def out(self) -> int:
        """The number of rows of the weight that the term changes."""
        return self.delta.shape[0] if self.taken is None else len(self.taken)


class BaseSites:
    """The tensors of a base by site, ``weight`` and ``bias`` apart."""

    def __init__(self, tensors: Mapping[str, Tensor], architecture: Architecture, dims: Dims) -> None:
        self.tensors, self._architecture, self._dims = tensors, architecture, dims
        self._weights: dict[Site, list[str]] = {}
        self._biases: dict[Site, list[str]] = {}
        for name in tensors:
            path, _, leaf = name.rpartition(".")
            found = self._biases if leaf == "bias" else self._weights
            site = architecture.locate(path if leaf in ("weight", "bias") else name)  # experts are bare parameters
            if site is not None:
                found.setdefault(site, []).append(name)
        self._apart: dict[tuple[int | None, str], list[Site]] = {}
        for site in self._weights:
            self._apart.setdefault((site.layer, site.role), []).append(site)

    def weights(self, role: str) -> list[str]:
        """The names of a role outside the layers."""
        return self._weights.get(Site(None, role), [])

    def whole(self, site: Site) -> list[str]:
        """The names of the weight of a site, where the base stores it neither fused nor split."""
        return self._weights.get(site, [])

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

    def terms(self, site: Site, delta: LowRank, gain: float) -> Iterator[tuple[str, Term]]:
        """The names of the tensors that a site's delta changes, each with its term; none where the base lacks any."""
        term = Term(site, straightened(delta), gain)
        whole = Site(site.layer, site.role)
        role = self._architecture.roles[site.role]
        if site in self._weights:
            yield from ((name, term) for name in self._weights[site])
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
