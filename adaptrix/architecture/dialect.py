"""Dialects: the names that a file format has for the modules of a family, and the order of the rows there.

A :class:`Dialect` is one TOML file, which is read when it is first needed; ``registry/README.md`` has its schema. With
its family it makes a :class:`~adaptrix.architecture.vocabulary.Vocabulary`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Rows = Literal["same", "rotary", "parts"]


@dataclass(frozen=True, slots=True)
class Name:
    """A role's name in a format.

    - ``path``: with ``{layer}`` and ``{expert}`` in it.
    - ``role``, ``part``: the role, or the part of a fused one, that it names.
    - ``rows``: the order of ΔW's rows there: ``same`` as in the family; ``rotary``, where the two halves of each head
      alternate; ``parts``, where those of a fused weight's first part come first, then those of the second.
    - ``heads``: for ``rotary``, the number of heads, an expression over the family's dims.
    """

    path: str
    role: str
    part: str | None = None
    rows: Rows = "same"
    heads: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a dialect's file.

    - ``called``: the format's own word for the family; empty where its files have none.
    - ``names``: those that the file states.
    - ``own``: roles that have the family's own paths.
    - ``prefix``, ``join``: what every name begins with, and what stands between its steps.
    """

    called: str
    names: tuple[Name, ...]
    own: tuple[str, ...] = ()
    prefix: str = ""
    join: str = "."


@dataclass(frozen=True)
class Dialect:
    """The dialect of a format that one family's adapters are written in.

    ``contents``: returns the table, as ``adaptrix.extend.read_dialects`` reads it from TOML; it is called once, when
    the table is first needed.
    """

    format: str
    family: str
    contents: Callable[[], Table]

    @property
    def name(self) -> str:
        """A name that no two dialects share."""
        return f"{self.format}-{self.family}"

    @cached_property
    def table(self) -> Table:
        """The names. Raises :class:`RefusedError` with every mistake in the file."""
        return self.contents()
