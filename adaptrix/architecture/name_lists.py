"""Lists of module names from a config, looked up in time that does not grow with their length.

A config from a stranger may list as many names as the file has tensors; comparing each with each would take hours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from adaptrix.architecture.patterns import tails


class NameList:
    """Names, compared with module paths in the ways that peft does."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._lengths = sorted({len(name) for name in self.names})
        self._parts = sorted({name.count(".") + 1 for name in self.names})

    def suffixes(self, path: str) -> Iterator[str]:
        """The names that are the path, or its end after a dot."""
        return (tail for tail in tails(path) if tail in self.names)

    def endings(self, path: str) -> Iterator[str]:
        """The names that the text of the path ends with: ``norm`` is an ending of ``input_layernorm``."""
        fitting = (path[len(path) - length :] for length in self._lengths if length <= len(path))
        return (end for end in fitting if end in self.names)

    def inside(self, path: str) -> Iterator[str]:
        """The names that are a run of whole parts of the path."""
        parts = path.split(".")
        for count in self._parts:
            runs = (".".join(parts[start : start + count]) for start in range(len(parts) - count + 1))
            yield from (run for run in runs if run in self.names)


def by_owner(paths: Iterable[str]) -> dict[str, list[str]]:
    """The last names of dotted paths by what precedes them; those of a bare name are under ``""``."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        owner, _, name = path.rpartition(".")
        found[owner].append(name)
    return dict(found)
