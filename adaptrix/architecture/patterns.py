"""Matching of module paths the way PEFT does it, in bounded time.

PEFT treats the keys of ``rank_pattern`` and a string ``target_modules`` as regular expressions. They
come from files that cannot be trusted, and Python's own ``re`` can be made to run for years; so anything more
than a plain dotted name goes to the ``regex`` package, which takes a time limit; all the matches of
one config share one :class:`Budget`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adaptrix.errors import refuse

_PLAIN = re.compile(r"[\w.-]+")
_SECONDS = 1.0
_LONGEST = 10_000
_FEW = 1000


@dataclass
class Budget:
    """The seconds left for the patterns of one config; ordinary ones take a few thousandths."""

    seconds: float = 5.0


def suffix_match(key: str, path: str) -> bool:
    """True where ``path`` is ``key`` or ends with ``.key``, as for a list of target modules."""
    return path == key or path.endswith(f".{key}")


def tails(path: str) -> Iterator[str]:
    """The endings of a path at its dots, shortest first, and the path: all that can name it in a list of targets.

    The shortest comes first because nearly every list holds last names.
    """
    dot = path.rfind(".")
    while dot >= 0:
        yield path[dot + 1 :]
        dot = path.rfind(".", 0, dot)
    yield path


def fullmatch(pattern: str, path: str, where: str, budget: Budget) -> bool:
    """True where a regular expression matches the whole path.

    - ``pattern``: as the ``regex`` package reads it, of at most 10,000 characters.
    - ``path``: a module path.
    - ``where``: the config key that the pattern comes from, for messages.
    - ``budget``: the time spent is taken off it; one match may take at most a second.

    Raises :class:`RefusedError` for a pattern that is too long, too slow or no regular expression, and where no time
    is left.
    """
    if len(pattern) > _LONGEST:
        raise refuse("config-value", where, f"a pattern of {len(pattern)} characters", f"at most {_LONGEST}")
    if budget.seconds <= 0:  # compiling takes time too, which no limit of one match counts
        found = "matching the patterns of the config takes seconds"
        raise refuse("config-value", where, found, "patterns that take no time", "List the modules.")
    import regex

    start, limit = time.monotonic(), max(0.001, min(_SECONDS, budget.seconds))
    try:
        return regex.fullmatch(pattern, path, timeout=limit) is not None
    except TimeoutError:
        found = f"matching {pattern[:200]!r} takes seconds"
        raise refuse("config-value", where, found, "a pattern that takes no time", "List the modules.") from None
    except (regex.error, RecursionError, OverflowError) as error:
        found = f"{pattern[:200]!r} is no regular expression ({error})"
        raise refuse("config-value", where, found, "one that Python reads", "List the modules.") from None
    finally:
        budget.seconds -= time.monotonic() - start


class Patterns:
    """The keys of a rank_pattern or alpha_pattern: each is ``(.*\\.)?(key)$`` to PEFT, the first match wins.

    Plain dotted names are looked up, however many there are. To PEFT a dot in one means any character;
    so it does here, unless there are more than 1000 keys: comparing them all would take too long.
    """

    def __init__(self, keys: Iterable[str], where: str, budget: Budget) -> None:
        ordered = list(keys)
        self._where, self._budget = where, budget
        self._names = {key: rank for rank, key in reversed(list(enumerate(ordered))) if _PLAIN.fullmatch(key)}
        self._dotted = [(rank, key) for key, rank in self._names.items() if "." in key and len(ordered) <= _FEW]
        self._others = [(rank, key) for rank, key in enumerate(ordered) if not _PLAIN.fullmatch(key)]

    def first(self, path: str) -> str | None:
        """The first key that matches. Raises :class:`RefusedError` for one that is slow or no pattern."""
        if not self._names and not self._others:
            return None
        found = [(self._names[tail], tail) for tail in tails(path) if tail in self._names]
        found += [(rank, key) for rank, key in self._dotted if _resembles(key, path)]
        best = min(found, default=None)
        for rank, key in self._others:
            if best is not None and rank > best[0]:
                break
            if fullmatch(rf"(.*\.)?({key})", path, self._where, self._budget):
                return key
        return None if best is None else best[1]


def _resembles(key: str, path: str) -> bool:
    """True where a plain name is the end of a path, its dots standing for any character."""
    start = len(path) - len(key)
    whole = start == 0 or (start > 0 and path[start - 1] == ".")
    return whole and all(a in (b, ".") for a, b in zip(key, path[start:], strict=True))
