"""Translation of adapters whose files name modules in a dialect, to the module paths of their family."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from adaptrix.adapter import Adapter, Target
from adaptrix.architecture import Architecture, Role, Site
from adaptrix.architecture.dialect import Name
from adaptrix.architecture.dims import Dims, read_dims
from adaptrix.architecture.vocabulary import Vocabulary
from adaptrix.binding.identify import claimed
from adaptrix.delta import Delta, LowRank
from adaptrix.errors import Problem
from adaptrix.tensor import Tensor
from adaptrix.wording import some


def in_own_names(
    adapter: Adapter, architectures: Collection[Architecture], config: Mapping[str, Any] | None = None
) -> Adapter:
    """The adapter with the module paths of its family and the rows of ΔW in their order.

    - ``adapter``: itself is returned where its targets are module paths already.
    - ``architectures``: all families, with their dialects.
    - ``config``: of the base, None where it is not known; then the family is the one that the file names or that has
      all of the names.

    What cannot be translated is left out and is an error among the adapter's problems.
    """
    if not adapter.dialect:
        return adapter
    found, problem = _vocabulary(adapter, architectures, config)
    if found is None:
        kept = () if problem is None else (problem,)
        return replace(adapter, deltas=MappingProxyType({}), problems=(*adapter.problems, *kept), dialect="")
    dims = Dims() if config is None else read_dims(found.architecture.dims, _merged(config, architectures))
    translation = _Translation(found, dims)
    deltas: dict[Target, Delta] = {}
    for target, delta in adapter.deltas.items():
        deltas |= translation.own(target, delta)
    problems = (*adapter.problems, *translation.problems(adapter.dialect))
    family = found.architecture.family if adapter.family else ""
    return replace(adapter, deltas=MappingProxyType(deltas), problems=problems, dialect="", family=family)


def _merged(config: Mapping[str, Any], architectures: Collection[Architecture]) -> Mapping[str, Any]:
    found = claimed(config, architectures)
    return config if found is None else {**config, **found[1]}


def _vocabulary(
    adapter: Adapter, architectures: Collection[Architecture], config: Mapping[str, Any] | None
) -> tuple[Vocabulary | None, Problem | None]:
    """The names of the adapter's family in its dialect; else a problem, or neither for an adapter without deltas."""
    speaking = [architecture for architecture in architectures if adapter.dialect in architecture.dialects]
    named = f"the family names of {adapter.dialect}"
    if config is not None and (claim := claimed(config, architectures)) is not None:
        if claim[0] not in speaking:
            found = f"no names of {adapter.dialect} are known for {claim[0].family}"
            return None, Problem("dialect-unknown", adapter.name, found, _families(speaking), _HOOK)
        speaking = [claim[0]]
    vocabularies = [Vocabulary(each.dialects[adapter.dialect].table, each) for each in speaking]
    called = [each for each in vocabularies if each.table.called == adapter.family]
    if not called:
        expected = " or ".join(sorted({each.table.called for each in vocabularies}))
        found = f"the file is for {adapter.family!r}" if adapter.family else "the file names no family"
        remedy = "Name the base that it was trained on with --base." if config is not None else _HOOK
        return None, Problem("dialect-unknown", adapter.name, found, expected or named, remedy)
    return max(called, key=lambda each: _known(each, adapter), default=None), None


def _known(vocabulary: Vocabulary, adapter: Adapter) -> tuple[int, bool, int]:
    """A measure of how well a family fits: the names it knows, then the original family, then fewer roles."""
    known = sum(vocabulary.locate(target.path) is not None for target in adapter.deltas)
    return known, vocabulary.architecture.family == "llama", -len(vocabulary.architecture.roles)


def _families(speaking: Collection[Architecture]) -> str:
    return f"one of {', '.join(sorted(each.family for each in speaking))}" if speaking else "a known dialect"


_HOOK = "Convert it to PEFT with the tool that wrote it, or add its names by the hook adaptrix_dialects."


@dataclass
class _Translation:
    """The state of one translation: what could not be translated so far."""

    vocabulary: Vocabulary
    dims: Dims

    def __post_init__(self) -> None:
        self.unnamed: list[str] = []
        self.unordered: dict[str, list[str]] = {}

    def own(self, target: Target, delta: Delta) -> dict[Target, Delta]:
        """The deltas that a delta in the format is, by module path."""
        found = self.vocabulary.locate(target.path)
        if found is None:
            self.unnamed.append(target.path)
            return {}
        site, entry = found
        try:
            order = self.vocabulary.row_order(entry, self.dims)
        except LookupError as error:
            self.unordered.setdefault(str(error).strip("'"), []).append(target.path)
            return {}
        delta = delta if order is None else delta.of_rows(np.argsort(order))
        return dict(self._placed(site, entry, delta))

    def _placed(self, site: Site, entry: Name, delta: Delta) -> Iterator[tuple[Target, Delta]]:
        role = self.vocabulary.architecture.roles[site.role]
        if not isinstance(delta, LowRank) or delta.experts is None:
            yield Target(_path(role, site)), delta
            return
        for expert, one in enumerate(each_expert(delta)):
            yield Target(_path(role, replace(site, expert=expert))), one

    def problems(self, dialect: str) -> Iterator[Problem]:
        """An error for all names that are not the family's, and one for each dimension that is not known."""
        family = self.vocabulary.architecture.family
        if self.unnamed:
            found = f"{family} has no such names in {dialect}: {some(self.unnamed, 3)}"
            yield Problem("site-missing", f"{len(self.unnamed)} modules", found, f"modules of {family}", _BASE)
        for dimension, names in self.unordered.items():
            found = f"their rows lie in another order, which depends on {dimension}, and it is not known"
            yield Problem("base-needed", some(names, 3), found, "the config of the base", _BASE)


_BASE = "Name the base that it was trained on with --base MODEL."


def _path(role: Role, site: Site) -> str:
    """The module path of a site, of one expert's own module where the site has an expert."""
    paths = role.paths if site.part is None else role.part_paths.get(site.part, ())
    fitting = [path for path in paths if ("{expert}" in path) == (site.expert is not None)]
    return (fitting or role.paths)[0].format(layer=site.layer, expert=site.expert)


def each_expert(delta: LowRank) -> Iterator[LowRank]:
    """The delta of each expert of a stack, as one of its own in the same dtype."""
    count, rank = delta.experts or 1, delta.rank
    B = delta.B.numpy().reshape(-1, rank, count)
    for expert in range(count):
        A = delta.A.rows(expert * rank, (expert + 1) * rank)
        yield replace(delta, A=A, B=Tensor.of(B[:, :, expert]), experts=None)
