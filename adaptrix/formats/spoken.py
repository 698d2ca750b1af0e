"""A plan in the names and the row order of a format's dialect, for its writer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adaptrix.architecture import Site
from adaptrix.architecture.dialect import Name
from adaptrix.architecture.layout import role_rows
from adaptrix.architecture.vocabulary import Vocabulary
from adaptrix.binding.translate import each_expert
from adaptrix.delta import LowRank, fuse, require_low_rank, split, straightened
from adaptrix.errors import Problem, RefusedError
from adaptrix.planning.plan import Plan
from adaptrix.tensor import Tensor
from adaptrix.wording import some

Named = tuple[Name, Site, LowRank]


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """A delta under its name in a format.

    ``deltas``: the only one, or one for each expert where the format stacks them; all are of one rank and scale.
    ``embedding``: its module is an embedding; ``role``: of the family.
    """

    name: str
    deltas: tuple[LowRank, ...]
    stacked: bool
    embedding: bool
    role: str

    def factors(self) -> tuple[Tensor, Tensor]:
        """A ``[r, in]`` and B ``[out, r]``, unread where they are as in the source; ``[experts, …]`` where stacked."""
        if not self.stacked:
            return self.deltas[0].A, self.deltas[0].B
        A, B = ([delta.A.numpy() for delta in self.deltas], [delta.B.numpy() for delta in self.deltas])
        return Tensor.of(np.stack(A)), Tensor.of(np.stack(B))


def vocabulary_of(plan: Plan, dialect: str) -> Vocabulary:
    """The names that a format has for the family of a plan. Raises :class:`RefusedError` where it has none."""
    family = plan.bound.architecture
    if dialect not in family.dialects:
        found = f"no names of {dialect} are known for {family.family}"
        remedy = "Name the base with --base MODEL, if its family is not known; or add the names: adaptrix_dialects."
        raise RefusedError(Problem("dialect-unknown", plan.bound.adapter.name, found, remedy=remedy))
    return Vocabulary(family.dialects[dialect].table, family)


def spoken(plan: Plan, dialect: str) -> list[Spoken]:
    """Every delta of a complete plan in the format's own terms, by name.

    Raises :class:`RefusedError` with all sites that have no name there, and all whose order of rows is not known.
    """
    deltas = require_low_rank(plan.bound.deltas, plan.bound.adapter.name, f"a {dialect} adapter")
    return _Speaker(plan, vocabulary_of(plan, dialect), dialect).all(deltas)


def require_untied(plan: Plan, found: Sequence[Spoken], runtime: str) -> None:
    """Raises :class:`RefusedError` for a delta on an embedding that the base's head shares, or may share.

    ``runtime``: what happens to it there, after "which".
    """
    embeddings = [each.name for each in found if each.role == "embed"]
    if not embeddings or plan.bound.tied is False:
        return
    if plan.bound.tied:
        said = f"the base ties its embedding to its head, which {runtime}"
        remedy = "Merge the adapter into a base that was untied, or leave it out with --layers."
    else:
        said = f"whether the base ties its embedding to its head is not known, which {runtime}"
        remedy = "Name a base with --base whose config says tie_word_embeddings."
    raise RefusedError(Problem("tied", some(embeddings, 3), said, "an embedding of its own", remedy))


@dataclass
class _Speaker:
    plan: Plan
    vocabulary: Vocabulary
    dialect: str

    def __post_init__(self) -> None:
        self.unnamed: list[Site] = []
        self.unordered: dict[str, list[str]] = {}

    def all(self, deltas: Mapping[Site, LowRank]) -> list[Spoken]:
        groups: dict[str, list[Named]] = {}
        for site, delta in self._whole(deltas):
            for named in self._named(site, delta):
                groups.setdefault(self.vocabulary.spelled(named[0], named[1]), []).append(named)
        found = [self._spoken(name, group) for name, group in sorted(groups.items())]
        if problems := [*self._problems()]:
            raise RefusedError(problems)
        return found

    def _whole(self, deltas: Mapping[Site, LowRank]) -> Iterator[tuple[Site, LowRank]]:
        """The deltas, those on parts of a fused weight as one where the format has a name for the whole alone."""
        parts: dict[Site, dict[str, LowRank]] = {}
        for site, delta in deltas.items():
            if site.part is None or self.vocabulary.entry(site.role, site.part) is not None:
                yield site, straightened(delta)
            else:
                parts.setdefault(replace(site, part=None), {})[site.part] = delta
        for site, group in parts.items():
            rows = role_rows(self.vocabulary.architecture.roles[site.role], self.plan.bound.dims)
            if rows is None or not group.keys() <= rows.keys():
                self.unordered.setdefault("the sizes of its parts", []).append(str(site))
            else:
                yield site, fuse(group, rows)

    def _named(self, site: Site, delta: LowRank) -> Iterator[Named]:
        """The delta with its entry, or those of its parts where the format names these alone; each expert apart."""
        entry = self.vocabulary.entry(site.role, site.part)
        role = self.vocabulary.architecture.roles[site.role]
        parts = [part for part in role.parts if self.vocabulary.entry(site.role, part) is not None]
        if entry is None and site.part is None and parts == [*role.parts] and parts:
            rows = role_rows(role, self.plan.bound.dims)
            if rows is None:
                self.unordered.setdefault("the sizes of its parts", []).append(str(site))
                return
            for part, own in split(delta, rows).items():
                yield from self._named(replace(site, part=part), own)
        elif entry is None:
            self.unnamed.append(site)
        elif delta.experts is None:
            yield entry, site, delta
        else:
            yield from ((entry, replace(site, expert=expert), one) for expert, one in enumerate(each_expert(delta)))

    def _spoken(self, name: str, group: list[Named]) -> Spoken:
        entry = group[0][0]
        role = self.vocabulary.architecture.roles[entry.role]
        deltas = [(site, self._ordered(entry, delta, name)) for _, site, delta in group]
        stacked = bool(role.experts) and "{expert}" not in entry.path
        if stacked:
            deltas = self._every_expert(deltas, role.experts or "", name)
        embedding = role.orientation == "embedding" or deltas[0][1].embedding
        return Spoken(name, tuple(delta for _, delta in deltas), stacked, embedding, entry.role)

    def _every_expert(self, deltas: list[tuple[Site, LowRank]], count: str, name: str) -> list[tuple[Site, LowRank]]:
        """One delta an expert, in order; zeros for those that have none."""
        total = self.plan.bound.dims.get(count)
        if total is None:
            self.unordered.setdefault(count, []).append(name)
            return deltas
        by_expert = {site.expert: delta for site, delta in deltas}
        first = deltas[0][1]
        nothing = replace(first, A=_zeros(first.A), B=_zeros(first.B))
        return [(replace(deltas[0][0], expert=each), by_expert.get(each, nothing)) for each in range(total)]

    def _ordered(self, entry: Name, delta: LowRank, name: str) -> LowRank:
        try:
            order = self.vocabulary.row_order(entry, self.plan.bound.dims)
        except LookupError as error:
            self.unordered.setdefault(str(error).strip("'"), []).append(name)
            return delta
        return delta if order is None else delta.of_rows(order)

    def _problems(self) -> Iterator[Problem]:
        if self.unnamed:
            found = f"{self.dialect} has no name for {some(list(map(str, self.unnamed)), 3)}"
            remedy = "Leave them out with --layers, or merge the adapter into its base."
            yield Problem("dialect-unnamed", f"{len(self.unnamed)} sites", found, remedy=remedy)
        for dimension, names in self.unordered.items():
            found = f"{self.dialect} has their rows in another order, which depends on {dimension}: it is not known"
            remedy = "Name the base that it was trained on with --base MODEL."
            yield Problem("base-needed", some(names, 3), found, "the config of the base", remedy)


def _zeros(tensor: Tensor) -> Tensor:
    return Tensor.of(np.zeros(tensor.shape, tensor.numpy().dtype))
