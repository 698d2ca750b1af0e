"""The translation between a format's names and sites.

Names are matched by the templates of a dialect, joined as the format joins them; they are never taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adaptrix.architecture.dialect import Name, Table
from adaptrix.architecture.dims import Dims
from adaptrix.architecture.family import Architecture, Site
from adaptrix.architecture.layout import RowIndex, role_rows

_NUMBER = {"{layer}": r"(?P<layer>0|[1-9]\d{0,5})", "{expert}": r"(?P<expert>0|[1-9]\d{0,5})"}


@dataclass(frozen=True)
class Vocabulary:
    """A dialect's names for the sites of its family."""

    table: Table
    architecture: Architecture

    def locate(self, name: str) -> tuple[Site, Name] | None:
        """The site that a name in the format means, and the template that it has; None where there is none."""
        for pattern, entry in self._patterns:
            if found := pattern.fullmatch(name):
                numbers = {key: int(value) for key, value in found.groupdict().items()}
                return Site(numbers.get("layer"), entry.role, entry.part, numbers.get("expert")), entry
        return None

    @property
    def entries(self) -> Iterable[Name]:
        """All templates."""
        return self._entries.values()

    def entry(self, role: str, part: str | None) -> Name | None:
        """The template for a role, or for a part of it; None where the format has no name."""
        return self._entries.get((role, part))

    def spelled(self, entry: Name, site: Site) -> str:
        """The name of a site in the format."""
        return self._full(entry).format(layer=site.layer, expert=site.expert)

    def row_order(self, entry: Name, dims: Dims) -> RowIndex | None:
        """The family's row number of each row in the format; None where they are in the same order.

        Raises ``LookupError`` where a dimension that it depends on is not known.
        """
        role = self.architecture.roles[entry.role]
        if entry.rows == "parts":
            rows = role_rows(role, dims)
            if rows is None:
                raise LookupError(role.groups or "the sizes of its parts")
            return np.concatenate(list(rows.values()))
        if entry.rows == "rotary":
            return _rotary(dims.get(role.shape(entry.part)[0] or ""), dims.get(entry.heads or ""), entry.heads or "")
        return None

    def _full(self, entry: Name) -> str:
        return self.table.prefix + self.table.join.join(entry.path.split("."))

    @cached_property
    def _entries(self) -> Mapping[tuple[str, str | None], Name]:
        own = (Name(self.architecture.roles[role].paths[0], role) for role in self.table.own)
        return {(name.role, name.part): name for name in (*own, *self.table.names)}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Name]]:
        found = []
        for entry in self._entries.values():
            text = re.escape(self._full(entry))
            for hole, pattern in _NUMBER.items():
                text = text.replace(re.escape(hole), pattern)
            found.append((re.compile(text), entry))
        return found


def _rotary(size: int | None, heads: int | None, expression: str) -> RowIndex:
    """Row numbers that alternate between the two halves of each head."""
    if size is None or heads is None:
        raise LookupError(expression)
    if not heads or size % (2 * heads):
        raise LookupError(f"{size} rows are no even number for each of {heads} heads")
    return np.arange(size).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
